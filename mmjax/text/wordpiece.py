"""WordPiece, BERT's tokenizer, read from local files: the same ids as transformers' BertTokenizer.

Source: Devlin et al. 2019, arXiv:1810.04805, section 3; google-research/bert, tokenization.py.

    text --clean, lower case, no accents--> words and signs --longest piece first--> ids --rows--> [B T]

B texts, T length of a row. A row is [CLS] text [SEP], or [CLS] text [SEP] second text [SEP], then [PAD] ...; the
pieces of a word after its first begin with "##". A text may hold "[MASK]" and the like: they are read as such.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = 0xF0000  # Unicode's plane 15, which no text uses
NORMALIZER = {  # field of tokenizer.json -> the same in tokenizer_config.json
    "lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its special ids."""

    core: tokenizers.Tokenizer
    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without [CLS] and [SEP]."""
        if isinstance(texts, str):
            raise ValueError(f"expected a sequence of texts, got the single text {texts!r}; put it in a list")
        return [encoding.ids for encoding in self.core.encode_batch(list(texts), add_special_tokens=False)]

    def rows(
        self, texts: Sequence[str], length: int | None = None, second: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """`input_ids` int32, `attention_mask` bool and `token_type_ids` int32, all [B T].

        length: T; that of the longest row if None. What doesn't fit is cut from the end of the longer of both texts.
        """
        pairs = [self.encode(texts), self.encode(second) if second is not None else [None] * len(texts)]
        rows = [self._row(*pair, length) for pair in zip(*pairs, strict=True)]
        return self._padded(rows, length)

    def word_rows(self, texts: Sequence[Sequence[str]], length: int | None = None) -> dict[str, np.ndarray]:
        """`rows` of texts that come as lists of words, and `words` int32 [B T]: whose first piece stands here.

        words counts from 0 and is -1 at further pieces, special tokens and padding: where no tag is read.
        """
        rows, words = [], []
        for text in texts:
            pieces = self.encode(text)
            ids = [one for piece in pieces for one in piece]
            first = [number if i == 0 else -1 for number, piece in enumerate(pieces) for i in range(len(piece))]
            rows.append(self._row(ids, None, length))
            kept = len(rows[-1][0]) - 2
            words.append([-1, *first[:kept], -1])
        made = self._padded(rows, length)
        made["words"] = np.full_like(made["input_ids"], -1)
        for row, number in zip(made["words"], words, strict=True):
            row[: len(number)] = number
        return made

    def _row(self, first: list[int], second: list[int] | None, length: int | None) -> tuple[list[int], list[int]]:
        """Ids and types of one row."""
        special = 2 if second is None else 3
        if length is not None and length < special:
            raise ValueError(f"a row holds {special} special tokens, got length={length}")
        room = np.inf if length is None else length - special
        a, b = len(first), len(second or ())
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        ids = [self.cls, *first[:a], self.sep]
        tail = [] if second is None else [*second[:b], self.sep]
        return ids + tail, [0] * len(ids) + [1] * len(tail)

    def _padded(self, rows: list[tuple[list[int], list[int]]], length: int | None) -> dict[str, np.ndarray]:
        length = max((len(ids) for ids, _ in rows), default=2) if length is None else length
        made = {
            "input_ids": np.full((len(rows), length), self.pad, np.int32),
            "attention_mask": np.zeros((len(rows), length), bool),
            "token_type_ids": np.zeros((len(rows), length), np.int32),
        }
        for row, (ids, types) in enumerate(rows):
            made["input_ids"][row, : len(ids)] = ids
            made["attention_mask"][row, : len(ids)] = True
            made["token_type_ids"][row, : len(ids)] = types
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """Pieces joined to words; special tokens are left out."""
        return self.core.decode([int(i) for i in ids], skip_special_tokens=True)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.core.id_to_token(int(i)) for i in ids]

    def save(self, path: str | Path) -> None:
        """vocab.txt, one token a line."""
        vocab = self.core.get_vocab()
        Path(path).write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")


def load(path: str | Path) -> Tokenizer:
    """`path`: vocab.txt, tokenizer.json, or a folder with one of them; tokenizer_config.json beside it is heeded.

    A lone vocab.txt is of an uncased model, as in BertTokenizer.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("vocab.txt", "tokenizer.json") if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"no WordPiece vocabulary in {path}: expected vocab.txt or tokenizer.json")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no WordPiece vocabulary at {path}: expected vocab.txt, or a folder that holds it")
    settings = path.with_name("tokenizer_config.json")
    settings = _json(settings) if settings.is_file() else {}
    if path.suffix == ".json":
        whole = _json(path)
        vocab, inside = whole.get("model", {}).get("vocab"), whole.get("normalizer") or {}
        settings = {ours: inside[name] for name, ours in NORMALIZER.items() if name in inside} | settings
    else:
        vocab = {token: i for i, token in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))}
    if not isinstance(vocab, dict) or not set(SPECIAL) <= vocab.keys():
        missing = [token for token in SPECIAL if not isinstance(vocab, dict) or token not in vocab]
        raise ValueError(f"{path} is no vocabulary of BERT: it has no {', '.join(missing)}")
    return _built(vocab, settings)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns an uncased vocabulary from `texts`; the same texts give the same one. Few texts give fewer ids than asked
    for."""
    normalizer, split = _normalizer({}), pre_tokenizers.BertPreTokenizer()
    words = (word for text in texts for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)))
    # Letters inside of words are learned as other letters than those at their start. The library's own trainer of word
    # pieces numbers them in an order that changes from run to run.
    marked = (word[0] + "".join(chr(ord(letter) + INSIDE) for letter in word[1:]) for word in words)
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False)
    core.train_from_iterator(marked, trainer)

    def piece(token: str) -> str:
        plain = "".join(chr(ord(letter) - INSIDE) if ord(letter) >= INSIDE else letter for letter in token)
        return plain if ord(token[0]) < INSIDE else f"##{plain}"

    return _built({piece(token): number for token, number in core.get_vocab().items()}, {})


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _normalizer(settings: dict) -> normalizers.Normalizer:
    named = {theirs: settings[ours] for theirs, ours in NORMALIZER.items() if ours in settings}
    return normalizers.BertNormalizer(**named)  # its defaults are BertTokenizer's


def _built(vocab: dict[str, int], settings: dict) -> Tokenizer:
    core = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN))
    core.normalizer, core.pre_tokenizer = _normalizer(settings), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.add_special_tokens(list(SPECIAL))
    return Tokenizer(core, *(vocab[token] for token in SPECIAL))
