"""Real text that every installation of mmjax brings along: what Python, NumPy and the emoji pack say about themselves.

    python   the reference behind help("topics"), and the docstrings of the standard library
    numpy    the docstrings of NumPy
    emoji    each concept's name, group and keywords as CLDR gives them; concepts held out of the pack are left out

A document is one topic, one module or one concept. Those with hash("document/" + name) < 0.05 (see `emoji`) are held
out, for perplexity. Texts differ a little between versions of Python and NumPy, and so do the numbers; the vocabulary
(`build_docs_bpe.py`) is committed and doesn't; it was learned from all documents, those held out too.
"""

import ast
import dataclasses
import functools
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmjax.data import emoji, packing, pipeline

ASSETS = Path(__file__).parent / "assets"
CORPORA = ("python", "numpy", "emoji")
HELD_OUT = 0.05  # share of the documents
END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # of a document; of a chat's turns
# Not the language, or other languages: tests, editors, tables of code points.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "pydoc_data", "encodings", "f2py"}


@functools.cache
def documents(corpus: str) -> dict[str, str]:
    """Name -> text of each document, in a fixed order."""
    if corpus not in CORPORA:
        raise ValueError(f"no corpus {corpus!r}; there are {', '.join(CORPORA)}")
    if corpus == "emoji":
        held_out = set(emoji.pack().split("concepts")[1])
        concepts = enumerate(emoji.pack().concepts)
        return {f"emoji/{one.code}": card(one) for number, one in concepts if number not in held_out}
    if corpus == "numpy":
        return docstrings("numpy", Path(np.__file__).parent)
    from pydoc_data import topics

    reference = {f"topics/{name}": text.strip() for name, text in sorted(topics.topics.items())}
    return {**reference, **docstrings("python", Path(sysconfig.get_path("stdlib")))}


def card(concept: emoji.Concept) -> str:
    """What CLDR says of a concept, as two sentences."""
    kind = concept.subgroup.replace("-", " ")
    return f"{concept.name}: {kind}, in {concept.group}. Keywords: {', '.join(concept.keywords)}."


def docstrings(corpus: str, root: Path) -> dict[str, str]:
    """Of each module below `root` that has any: all its docstrings, each under its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).with_suffix("")
        if not SKIPPED & set(module.parts):
            with warnings.catch_warnings():  # of escapes in old sources
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
            if texts := list(_docstrings(tree, ".".join(module.parts))):
                found[f"{corpus}/{'.'.join(module.parts)}"] = "\n\n".join(texts)
    return found


def _docstrings(node: ast.AST, name: str) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield f"{name}\n{text}"
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.Expr) and isinstance(
            child.value, ast.Call
        ):  # numpy's add_newdoc("module", "name", text)
            words = [arg.value for arg in child.value.args if isinstance(arg, ast.Constant)]
            if len(words) == 3 and all(isinstance(word, str) for word in words):
                yield f"{words[0]}.{words[1]}\n{words[2].strip()}"


def is_held_out(name: str) -> bool:
    return emoji.fraction("document", name) < HELD_OUT


@functools.cache
def tokenizer():
    """Byte-level BPE over cased text, with the special tokens END, TURN and TURN_END: a `tokenizers.Tokenizer`."""
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(ASSETS / "docs_bpe.json"))


@functools.cache
def packed(corpora: tuple[str, ...], length: int, split: str) -> packing.Packed:
    """The documents of a split in rows of `length` tokens; each ends with END."""
    texts = [
        text
        for corpus in corpora
        for name, text in documents(corpus).items()
        if is_held_out(name) == (split == "held_out")
    ]
    end = tokenizer().token_to_id(END)
    return packing.pack([[*one.ids, end] for one in tokenizer().encode_batch(texts)], length)


@dataclasses.dataclass(frozen=True)
class DocsData:
    """Packed rows for pretraining, each once per epoch (see `pipeline.Data`)."""

    length: int = 128  # T
    corpora: tuple[str, ...] = CORPORA

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        index = packed(self.corpora, self.length, "train")
        return pipeline.Batches(
            len(index.rows), batch_size, seed, rows, lambda indices, rng, rows: index.batch(indices[rows])
        )

    def texts(self, split: str) -> pipeline.Batch:
        """All rows of "train" or "held_out", for evals: as a batch of one epoch."""
        if split not in ("train", "held_out"):
            raise ValueError(f"no split {split!r}; there are train and held_out")
        index = packed(self.corpora, self.length, split)
        return index.batch(range(len(index.rows)))

    def tokenize(self, texts: Sequence[str]) -> pipeline.Batch:
        """Padded on the left, so that a text is continued where it ends."""
        return left_padded([one.ids for one in tokenizer().encode_batch(list(texts))], self.length)


def left_padded(rows: Sequence[Sequence[int]], length: int) -> pipeline.Batch:
    """`input_ids` int32 [B T] and `attention_mask` bool [B T]. Raises ValueError for a row that does not fit."""
    longest = max(map(len, rows), default=0)
    if longest > length:
        raise ValueError(f"a text has {longest} tokens, and at most {length} fit; shorten it")
    input_ids = np.zeros((len(rows), length), np.int32)
    attention_mask = np.zeros((len(rows), length), bool)
    for ids, mask, row in zip(input_ids, attention_mask, rows, strict=True):
        ids[length - len(row) :] = row
        mask[length - len(row) :] = True
    return {"input_ids": input_ids, "attention_mask": attention_mask}
