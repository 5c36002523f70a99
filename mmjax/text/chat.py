"""Chat templates: the turns of a conversation as the one text that a chat model reads.

    [{"role": "user", "content": "Hi"}, ...] --template--> pieces of text --encode--> ids, and which of them to learn

A template is a function of the messages. Those here are for training; a model that comes with its own template, in
Jinja, is rendered by that (`from_jinja`), since it was trained on every blank of it. Sources: the templates of
SmolLM2 and Qwen2.5 (ChatML), Llama 3, Llama 2 (transformers 4.40), Gemma and Vicuna 1.1; goldens in
tests/goldens/chat.json and shikra.json.

A piece is learned where the assistant speaks: its words and the token that ends its turn. A model that is not trained
on that token never stops.
"""

import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tokenizers

ROLES = ("system", "user", "assistant")
Messages = Sequence[Mapping[str, str]]  # each {"role": one of ROLES, "content": text}


class Piece(NamedTuple):
    text: str
    learned: bool = False


Template = Callable[..., list[Piece]]  # (messages, *, answer=False); answer=True ends where the assistant is to speak


def chatml(messages: Messages, *, answer: bool = False, system: str | None = None) -> list[Piece]:
    """OpenAI's Chat Markup Language. system: said first where the messages have no system turn."""
    check(messages, answer)
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return _turns("", messages, answer, lambda role: f"<|im_start|>{role}\n", "<|im_end|>", "\n")


def llama3(messages: Messages, *, answer: bool = False) -> list[Piece]:
    check(messages, answer)
    begin, end = "<|start_header_id|>", "<|end_header_id|>"
    return _turns(
        "<|begin_of_text|>", _stripped(messages), answer, lambda role: f"{begin}{role}{end}\n\n", "<|eot_id|>"
    )


def gemma(messages: Messages, *, answer: bool = False) -> list[Piece]:
    """Gemma 1 and 2, which know no system turn and call the assistant the model."""
    check(messages, answer)
    if messages[0]["role"] == "system":
        raise ValueError("Gemma's template has no system turn; say it in the first turn of the user")

    def head(role: str) -> str:
        return f"<start_of_turn>{'model' if role == 'assistant' else role}\n"

    return _turns("<bos>", _stripped(messages), answer, head, "<end_of_turn>", "\n")


def llama2(messages: Messages, *, answer: bool = False) -> list[Piece]:
    """Llama 2 puts what the system says inside the first turn of the user; answers have no head of their own."""
    check(messages, answer)
    system = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n" if messages[0]["role"] == "system" else ""
    pieces = []
    for message in messages[1:] if system else messages:
        if message["role"] == "user":
            pieces.append(Piece(f"<s>[INST] {(system + message['content']).strip()} [/INST]"))
            system = ""
        else:
            pieces.append(Piece(f" {message['content'].strip()} </s>", learned=True))
    return pieces


VICUNA = (  # what the system says where the messages don't
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna(messages: Messages, *, answer: bool = False) -> list[Piece]:
    """Vicuna 1.1's, which LLaVA-1.5, Shikra and NExT-Chat are trained with: lm-sys/FastChat, conversation.py."""
    check(messages, answer)
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": VICUNA}, *messages]
    pieces = [Piece(f"<s>{messages[0]['content']} ")]
    for message in messages[1:]:
        if message["role"] == "user":
            pieces.append(Piece(f"USER: {message['content']} ASSISTANT:"))
        else:
            pieces.append(Piece(f" {message['content']}</s>", learned=True))
    return joined(pieces)


def _turns(
    start: str, messages: Messages, answer: bool, head: Callable[[str], str], end: str, after: str = ""
) -> list[Piece]:
    """start, then for each turn: head(role) content end after; of these the assistant's content and end are learned."""
    pieces = [Piece(start)]
    for message in messages:
        role, said = message["role"], message["content"] + end
        pieces += [Piece(head(role)), Piece(said, learned=role == "assistant"), Piece(after)]
    if answer:
        pieces.append(Piece(head("assistant")))
    return joined(pieces)


def _stripped(messages: Messages) -> list[dict[str, str]]:
    return [{**message, "content": message["content"].strip()} for message in messages]


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of the same kind as one piece."""
    groups = itertools.groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.learned)
    return [Piece("".join(piece.text for piece in group), learned) for learned, group in groups]


def text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def check(messages: Messages, answer: bool) -> None:
    """Perhaps a system turn, then user and assistant in turns; the user's is last where an answer is wanted."""
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ValueError(
                f"message {i} must be {{'role': one of {', '.join(ROLES)}, 'content': text}}, got {message}"
            )
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [ROLES[1 + i % 2] for i in range(len(turns))]
    if not turns or turns != expected:
        raise ValueError(
            f"roles must be user, assistant, user ..., with at most one system turn before, got {', '.join(roles)}"
        )
    if answer and turns[-1] != "user":
        raise ValueError("an answer needs the user's turn last, and here the assistant has just spoken")


def from_jinja(source: str, where: str, *, bos: str = "", eos: str = "") -> Template:
    """The template that a model brings along (extra [gguf]). where: its file, for messages.

    Jinja runs in its sandbox. What is learned is found by rendering the conversation up to each answer, which fails
    for the few templates that say a turn differently once others follow.
    """
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ValueError(f"{where} has a chat template in Jinja, which needs: pip install 'mmjax[gguf]'") from error

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)  # Llama 3.2 says the date
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template of {where} is not valid Jinja: {error}") from error

    def rendered(messages: Messages, answer: bool) -> str:
        try:
            return template.render(messages=list(messages), add_generation_prompt=answer, bos_token=bos, eos_token=eos)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template of {where} refuses these messages: {error}") from error

    def render(messages: Messages, *, answer: bool = False) -> list[Piece]:
        check(messages, answer)
        pieces, done = [], ""
        for i in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
            head, turn = rendered(messages[:i], True), rendered(messages[: i + 1], False)
            if not head.startswith(done) or not turn.startswith(head):
                raise ValueError(
                    f"the chat template of {where} rewrites earlier turns, so answers cannot be told apart"
                )
            said = turn[len(head) :].rstrip()  # what follows the token that ends the turn is not the assistant's
            pieces += [Piece(head[len(done) :]), Piece(said, learned=True), Piece(turn[len(head) + len(said) :])]
            done = turn
        whole = rendered(messages, answer)
        if not whole.startswith(done):
            raise ValueError(f"the chat template of {where} rewrites earlier turns, so answers cannot be told apart")
        return joined([*pieces, Piece(whole[len(done) :])])

    return render


class Encoded(NamedTuple):
    ids: list[int]
    learned: list[bool]  # of each id


def encode(core: tokenizers.Tokenizer, pieces: Sequence[Piece]) -> Encoded:
    """The text as one, so that ids are those of a reader; an id is learned if any of its characters is."""
    encoding = core.encode(text(pieces), add_special_tokens=False)
    learned = [piece.learned for piece in pieces for _ in piece.text]  # of each character
    return Encoded(encoding.ids, [any(learned[start:stop]) for start, stop in encoding.offsets])
