"""CLIP's tokenizer, read from local files: the same ids as the original's.

Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; openai/CLIP, clip/simple_tokenizer.py.

    text --clean--> lower case --split--> words and signs --bytes--> symbols, the last + "</w>" --merges--> ids

Two originals differ in cleaning and in padding, and `clean` says which one is followed:

    "openai"  ftfy.fix_text, HTML entities unescaped twice, lower case; padded with 0
    "hf"      Unicode NFC, lower case (transformers.CLIPTokenizer); padded with the end id

Both give the same ids for plain text.
"""

import gzip
import html
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mmjax.text import bpe

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # openai/CLIP reads so many lines of its longer file
# Digits stand alone; a run of other signs is one word.
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def load(path: str | Path, clean: str = "hf") -> bpe.Tokenizer:
    """`path`: bpe_simple_vocab_16e6.txt.gz, tokenizer.json, or a folder with one of them or vocab.json + merges.txt."""
    if clean not in ("openai", "hf"):
        raise ValueError(f"clean must be 'openai' or 'hf', got {clean!r}")
    vocab, merges = _read(Path(path))
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    core.add_special_tokens([START, END])
    start, end = core.token_to_id(START), core.token_to_id(END)
    if clean == "openai":
        return bpe.Tokenizer(core, pad=0, start=start, end=end, clean=openai_clean())
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    core.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    return bpe.Tokenizer(core, pad=end, start=start, end=end)


def openai_clean():
    """The cleaning of openai/CLIP, which needs the package ftfy: mojibake is repaired before anything is split."""
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise ValueError(
            "clean='openai' needs the package ftfy (pip install ftfy); clean='hf' does without and gives the same ids "
            "for text that holds no HTML entities and no wrongly decoded characters"
        ) from error

    def clean(text: str) -> str:
        return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()

    return clean


def _read(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of any of the three formats."""
    if path.is_dir():
        names = ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz"]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"no CLIP tokenizer in {path}: expected one of {', '.join(names)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no CLIP vocabulary at {path}: expected bpe_simple_vocab_16e6.txt.gz or a HF folder")
    if path.suffix == ".gz":
        return _from_lines(gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1])
    if path.name == "vocab.json":
        merges = path.with_name("merges.txt")
        if not merges.is_file():
            raise FileNotFoundError(f"{path} has no merges.txt beside it")
        lines = merges.read_text(encoding="utf-8").split("\n")[1:]
        return json.loads(path.read_text(encoding="utf-8")), [tuple(line.split()) for line in lines if line]
    model = json.loads(path.read_text(encoding="utf-8")).get("model", {})
    if not {"vocab", "merges"} <= model.keys() or START not in model["vocab"]:
        raise ValueError(f"{path} holds no CLIP vocabulary: expected model.vocab with {START} and model.merges")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    return model["vocab"], merges


def _from_lines(lines: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's file lists merges only: ids are 256 bytes, the same at a word's end, merges in order, start, end."""
    merges = [tuple(line.split()) for line in lines if line]
    symbols = byte_symbols()
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), START, END]
    return {name: i for i, name in enumerate(names)}, merges


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of CLIP's ids: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
