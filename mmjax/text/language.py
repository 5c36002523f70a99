"""How a language model reads and writes: its tokenizer, its chat template and the ids that end an answer.

    folder of the hub: tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json -> Language
    metadata of a GGUF: tokenizer.ggml.*, tokenizer.chat_template                                         -> Language

GGUF keeps a vocabulary, not how text is split before it: that is a name ("tokenizer.ggml.pre"), for whose meaning see
llama.cpp's src/llama-vocab.cpp.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mmjax.text import byte_bpe, chat

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA_BPE = "llama-bpe"  # what files call it
SPLITS: dict[str, Callable[[], list]] = {  # tokenizer.ggml.pre -> what cuts a text before its bytes are merged
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    LLAMA_BPE: lambda: [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
BLANK = "\u2581"  # how SentencePiece writes a space


@dataclasses.dataclass(frozen=True)
class Language:
    core: tokenizers.Tokenizer
    stop_ids: tuple[int, ...] = ()
    template: chat.Template | None = None  # None: a base model, which goes on with a text

    def prompt(self, text: str, *, system: str | None = None) -> list[int]:
        """The ids to which a model answers: `text` as the user's turn, or as it is where there is no template."""
        if not text.strip():
            raise ValueError("the prompt is empty; give the model some text to answer or to go on with")
        if self.template is None:
            if system is not None:
                raise ValueError("a system text needs a chat model, and this one has no chat template")
            return self.core.encode(text).ids
        messages = [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return chat.encode(self.core, self.template(messages, answer=True)).ids


def from_gguf(metadata: Mapping[str, Any], where: str) -> Language:
    """where: the file, for messages."""
    fields = _Metadata(metadata, where)
    core = fields.one_of("model", BUILDERS)(fields)
    core.add_special_tokens([AddedToken(token, normalized=False) for token in fields.of_kind(CONTROL)])
    core.add_tokens([AddedToken(token, normalized=False) for token in fields.of_kind(USER_DEFINED)])
    bos, eos, end_of_turn = (fields.special(name) for name in ("bos", "eos", "eot"))
    # Unless the file says otherwise, SentencePiece's texts and Llama 3's begin with it, other byte-level ones do not.
    begins = fields.get("model") == "llama" or fields.get("pre", "gpt-2") == LLAMA_BPE
    if bos and fields.get("add_bos_token", begins):
        begin = (bos, core.token_to_id(bos))
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos}:0 $A:0 {bos}:1 $B:1", [begin])
    source = metadata.get("tokenizer.chat_template")
    template = chat.from_jinja(source, where, bos=bos, eos=eos) if source else None
    return Language(core, tuple(sorted({core.token_to_id(token) for token in (eos, end_of_turn) if token})), template)


@dataclasses.dataclass(frozen=True)
class _Metadata:
    """The fields tokenizer.ggml.* of a file."""

    values: Mapping[str, Any]
    where: str

    def get(self, name: str, default: Any = None) -> Any:
        name = f"tokenizer.ggml.{name}"
        if name not in self.values and default is None:
            raise ValueError(
                f"{self.where} has no {name}, so it cannot read text; convert the model with its vocabulary"
            )
        return self.values.get(name, default)

    def one_of(self, name: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
        value = self.get(name, default)
        if value not in choices:
            raise ValueError(f"{self.where}: tokenizer.ggml.{name} is {value!r}, supported are {', '.join(choices)}")
        return choices[value]

    @property
    def tokens(self) -> list[str]:
        return self.get("tokens")

    def of_each(self, name: str, default: list | None = None) -> list:
        """A list with one entry for each token."""
        entries = self.get(name, default)
        if len(entries) != len(self.tokens):
            raise ValueError(
                f"{self.where}: tokenizer.ggml.{name} has {len(entries)} entries for {len(self.tokens)} tokens; "
                "the vocabulary is damaged, convert the model again"
            )
        return entries

    def of_kind(self, *kinds: int) -> list[str]:
        found = self.of_each("token_type", [NORMAL] * len(self.tokens))
        return [token for token, kind in zip(self.tokens, found, strict=True) if kind in kinds]

    def special(self, name: str) -> str:
        """The token of this role, or nothing."""
        i = self.get(f"{name}_token_id", -1)
        if i >= len(self.tokens):
            raise ValueError(
                f"{self.where}: tokenizer.ggml.{name}_token_id is {i}, but there are {len(self.tokens)} tokens"
            )
        return self.tokens[i] if i >= 0 else ""


def _byte_level(fields: _Metadata) -> tokenizers.Tokenizer:
    """GPT-2's: merges over the 256 bytes."""
    split = fields.one_of("pre", SPLITS, "gpt-2")
    merges = [tuple(pair.split(" ")) for pair in fields.get("merges")]
    # Llama 3 looks a whole word up before it merges; the others find the same by merging.
    whole = fields.get("pre", "gpt-2") == LLAMA_BPE
    vocabulary = {token: i for i, token in enumerate(fields.tokens)}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    core.pre_tokenizer = pre_tokenizers.Sequence(split())
    core.decoder = decoders.ByteLevel()
    return core


def _sentence_piece(fields: _Metadata) -> tokenizers.Tokenizer:
    """Llama 2's: the pair whose union has the best score is merged first; unknown characters fall back to bytes."""
    scores = dict(zip(fields.tokens, fields.of_each("scores"), strict=True))
    words = set(fields.of_kind(NORMAL, USER_DEFINED))
    pairs = [(word[:i], word[i:]) for word in words for i in range(1, len(word))]
    merges = [pair for pair in pairs if pair[0] in words and pair[1] in words]
    merges.sort(key=lambda pair: (-scores["".join(pair)], "".join(pair), len(pair[0])))
    unknown = next(iter(fields.of_kind(UNKNOWN)), None)
    vocabulary = {token: i for i, token in enumerate(fields.tokens)}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = fields.get("add_space_prefix", True)
    prefix = [normalizers.Prepend(BLANK)] if prefixed else []
    core.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", BLANK)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    core.decoder = decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return core


BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}  # tokenizer.ggml.model


def from_folder(folder: str | Path) -> Language:
    """Of a folder of the hub, as transformers' save_pretrained writes it."""
    folder = Path(folder)
    core = byte_bpe.load(folder)
    config = _json(folder / "tokenizer_config.json")
    eos = _token(config, "eos_token")
    stop_ids = {core.token_to_id(eos)} if eos else set()
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        stop_ids |= set(found) if isinstance(found, list) else {found}
    jinja = folder / "chat_template.jinja"
    source = jinja.read_text(encoding="utf-8") if jinja.exists() else config.get("chat_template")
    if isinstance(source, list):  # several by name
        source = next((one["template"] for one in source if one.get("name") == "default"), None)
    template = chat.from_jinja(source, str(folder), bos=_token(config, "bos_token"), eos=eos) if source else None
    return Language(core, tuple(sorted(stop_ids - {None})), template)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _token(config: Mapping[str, Any], name: str) -> str:
    """A token as text; some files wrap it in an object."""
    value = config.get(name) or ""
    return value["content"] if isinstance(value, Mapping) else value
