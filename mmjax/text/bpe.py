"""Byte-level byte-pair encoding: train one on the captions at hand, and turn texts into rows of ids.

Source: Sennrich et al. 2016, arXiv:1508.07909 (pairs); Radford et al. 2019, GPT-2 (on bytes: no text is unknown).

    texts --normalise--> lower case, single spaces --split--> words --merges--> ids --rows--> [B T]

B texts, T length of a row. A row is [start, ids ..., end, padding ...], as CLIP's text tower reads it. `start` and
`end` are the two highest ids, so that "the highest id of the row" (OpenAI's rule) finds the end.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

PAD, START, END = "<pad>", "<start>", "<end>"


def unchanged(text: str) -> str:
    return text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its three special ids."""

    core: tokenizers.Tokenizer
    pad: int
    start: int
    end: int
    clean: Callable[[str], str] = unchanged  # what happens to a text before `core` sees it

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special ids."""
        if isinstance(texts, str):
            raise ValueError(f"expected a sequence of texts, got the single text {texts!r}; put it in a list")
        encodings = self.core.encode_batch([self.clean(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def rows(self, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """`input_ids` int32 [B T] and `attention_mask` bool [B T]; what doesn't fit is cut, the end id stays."""
        if length < 2:
            raise ValueError(f"a row holds at least the start and the end id, got length={length}")
        input_ids = np.full((len(texts), length), self.pad, np.int32)
        attention_mask = np.zeros((len(texts), length), bool)
        for row, mask, ids in zip(input_ids, attention_mask, self.encode(texts), strict=True):
            ids = [self.start, *ids[: length - 2], self.end]
            row[: len(ids)] = ids
            mask[: len(ids)] = True
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row up to its end id."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        special = {self.pad, self.start} if self.pad != self.end else {self.start}
        return self.core.decode([i for i in ids if i not in special], skip_special_tokens=False).strip()

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.core.to_str(pretty=True) + "\n", encoding="utf-8")


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns merges from `texts`; the same texts give the same vocabulary. Few texts give fewer ids than asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes
    least = len(alphabet) + 3
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (256 bytes and 3 special ids), got {vocab_size}")
    core = tokenizers.Tokenizer(models.BPE())
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    core.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Strip(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, special_tokens=[PAD], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens([START, END])
    return _wrapped(core)


def load(path: str | Path) -> Tokenizer:
    """A tokenizer that `Tokenizer.save` wrote."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; train one with mmjax.text.bpe.train and save it there")
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer in the JSON format of the tokenizers library: {error}") from error
    missing = [token for token in (PAD, START, END) if core.token_to_id(token) is None]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: it was not written by mmjax.text.bpe; "
            "for CLIP's own vocabulary use mmjax.text.clip_bpe.load"
        )
    return _wrapped(core)


def _wrapped(core: tokenizers.Tokenizer) -> Tokenizer:
    core.encode_special_tokens = True  # a caption that says "<end>" is spelled out; it doesn't end the row
    return Tokenizer(core, *(core.token_to_id(token) for token in (PAD, START, END)))
