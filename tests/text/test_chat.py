"""Templates against what their Jinja originals render (tests/goldens/chat.json), and what of it is learned."""

import functools
import json
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mmjax.text import chat

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "chat.json").read_text(encoding="utf-8"))["rows"]
SMOL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TEMPLATES = {
    "chatml": functools.partial(chat.chatml, system=SMOL),
    "qwen": functools.partial(chat.chatml, system=QWEN),
    "llama3": chat.llama3,
    "llama2": chat.llama2,
    "gemma": chat.gemma,
}
JINJA = (  # ChatML
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def learned(pieces):
    return [piece.text for piece in pieces if piece.learned]


def test_the_goldens_hold_every_template():
    counts = {name: sum(row["template"] == name for row in GOLDEN) for name in TEMPLATES}
    assert counts == {"chatml": 5, "qwen": 5, "llama3": 5, "llama2": 5, "gemma": 3}


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['template']}-{len(row['messages'])}")
def test_text_is_that_of_the_original(row):
    pieces = TEMPLATES[row["template"]](row["messages"], answer=row["answer"])
    assert chat.text(pieces) == row["text"]


@pytest.mark.parametrize("row", [row for row in GOLDEN if "learned" in row], ids=lambda row: row["template"])
def test_what_the_assistant_says_is_learned_as_in_trl(row):
    pieces = TEMPLATES[row["template"]](row["messages"], answer=row["answer"])
    # trl's variants also count line breaks around the turn, which the reader of the head has already seen.
    assert [text.strip() for text in learned(pieces)] == [text.strip() for text in row["learned"]]


def test_the_end_of_the_turn_is_learned_and_what_follows_is_not():
    assert learned(chat.chatml([USER, ASSISTANT])) == ["Hello<|im_end|>"]
    assert learned(chat.llama3([USER, ASSISTANT])) == ["Hello<|eot_id|>"]
    assert learned(chat.gemma([USER, ASSISTANT])) == ["Hello<end_of_turn>"]
    assert learned(chat.llama2([USER, ASSISTANT])) == [" Hello </s>"]
    assert learned(chat.chatml([USER], answer=True)) == []


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SYSTEM],
        [ASSISTANT, USER],
        [USER, USER],
        [USER, SYSTEM],
        [SYSTEM, SYSTEM, USER],
        [USER, ASSISTANT, ASSISTANT],
    ],
)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_wrong_order_of_roles_is_refused(template, messages):
    with pytest.raises(ValueError, match="roles must be user, assistant|at least one message"):
        template(messages)


def test_an_answer_needs_a_question():
    with pytest.raises(ValueError, match="needs the user's turn last"):
        chat.chatml([USER, ASSISTANT], answer=True)


@pytest.mark.parametrize(
    "message", [{"role": "tool", "content": "x"}, {"role": "user"}, {"role": "user", "content": 3}]
)
def test_a_message_of_another_form_is_refused(message):
    with pytest.raises(ValueError, match="message 0 must be .*system, user, assistant.* got"):
        chat.llama3([message])


def test_gemma_has_no_system_turn():
    with pytest.raises(ValueError, match="no system turn"):
        chat.gemma([SYSTEM, USER])


def byte_core():
    """One id for each byte, and ChatML's two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return core


def test_ids_are_learned_as_their_characters_are():
    core = byte_core()
    messages = [SYSTEM, USER, {"role": "assistant", "content": "Ça va 🙂"}, USER, ASSISTANT]
    ids, mask = chat.encode(core, chat.chatml(messages))
    assert core.decode(ids, skip_special_tokens=False) == chat.text(chat.chatml(messages))
    said = core.decode([i for i, counts in zip(ids, mask, strict=True) if counts], skip_special_tokens=False)
    assert said == "Ça va 🙂<|im_end|>Hello<|im_end|>"
    assert sum(mask) == len("Ça va 🙂".encode()) + 1 + 5 + 1


class TestJinja:
    @pytest.fixture(autouse=True)
    def _needs_jinja(self):
        pytest.importorskip("jinja2", reason="needs the [gguf] extra")

    @pytest.mark.parametrize("answer", [False, True])
    def test_it_renders_and_marks_as_our_own(self, answer):
        template = chat.from_jinja(JINJA, "a.gguf")
        messages = [SYSTEM, USER, ASSISTANT, USER, *([] if answer else [ASSISTANT])]
        assert template(messages, answer=answer) == chat.chatml(messages, answer=answer)

    def test_tokens_and_whitespace_control_are_as_in_transformers(self):
        source = "{{ bos_token }}\n  {% for message in messages %}\n{{ message.content }}{{ eos_token }}{% endfor %}"
        template = chat.from_jinja(source, "a.gguf", bos="<s>", eos="</s>")
        assert chat.text(template([USER])) == "<s>\nHi</s>"

    def test_what_a_template_refuses_is_told(self):
        template = chat.from_jinja("{{ raise_exception('no system, please') }}", "a.gguf")
        with pytest.raises(ValueError, match=r"template of a\.gguf refuses these messages: no system, please"):
            template([SYSTEM, USER])

    def test_a_broken_template_is_told(self):
        with pytest.raises(ValueError, match=r"template of a\.gguf is not valid Jinja"):
            chat.from_jinja("{% for %}", "a.gguf")

    def test_it_cannot_reach_out_of_its_sandbox(self):
        template = chat.from_jinja("{{ messages.__class__.__mro__[1].__subclasses__() }}", "a.gguf")
        with pytest.raises(ValueError, match="refuses"):
            template([USER])

    def test_a_template_that_rewrites_history_cannot_mark_answers(self):
        template = chat.from_jinja(
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "a.gguf"
        )
        with pytest.raises(ValueError, match="rewrites earlier turns"):
            template([USER, ASSISTANT])

    def test_roles_are_checked_first(self):
        with pytest.raises(ValueError, match="roles must be"):
            chat.from_jinja(JINJA, "a.gguf")([ASSISTANT])


def test_without_jinja_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"pip install 'mmjax\[gguf\]'"):
        chat.from_jinja(JINJA, "a.gguf")
