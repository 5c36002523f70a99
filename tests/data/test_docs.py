"""The text that comes along: what is read from sources, who is held out, and rows in which the two never meet."""

import hashlib
import sysconfig
import warnings
from pathlib import Path

import numpy as np
import pytest

from mmjax.data import docs, emoji
from mmjax.data.docs import DocsData

SOURCE = '''"""About the module."""
def seen(x):
    """About a function.

        >>> indented

    And on.
    """
    def inner():
        """About a function inside."""
def _hidden():
    """Private."""
    def inside():
        """Of something private."""
async def later():
    "About a coroutine."
def silent():
    return "not a docstring"
class Thing:
    """About a class, with an escape that is none: \\d"""
    def method(self):
        """About a method."""
    def __init__(self):
        """About its beginning."""
class Bare:
    def method(self):
        """Of a class without words."""
add_newdoc("numpy._core", "add", """
    About what is written in C.
    """)
add_newdoc("numpy", "ndarray", ("T", "a tuple"))
print("two", "strings")
'''


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_docstrings_are_read_under_their_dotted_names(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the escape that is none
        found = docs.docstrings("mine", write(tmp_path, package__module=SOURCE))
    assert list(found) == ["mine/package.module"]
    assert found["mine/package.module"].split("\n\n") == [
        "package.module\nAbout the module.",
        "package.module.seen\nAbout a function.",
        "    >>> indented",
        "And on.",
        "package.module.seen.inner\nAbout a function inside.",
        "package.module.later\nAbout a coroutine.",
        "package.module.Thing\nAbout a class, with an escape that is none: \\d",
        "package.module.Thing.method\nAbout a method.",
        "package.module.Bare.method\nOf a class without words.",
        "numpy._core.add\nAbout what is written in C.",
    ]


def test_modules_without_words_and_folders_that_are_not_the_language_are_left_out(tmp_path):
    words = '"""Words."""'
    root = write(tmp_path, b=words, a=words, none="x = 1", tests__c=words, sub__test__d=words, sub__tested=words)
    assert list(docs.docstrings("mine", root)) == ["mine/a", "mine/b", "mine/sub.tested"]
    assert {path.stem for path in root.rglob("*.py")} == {"a", "b", "none", "c", "d", "tested"}


def test_the_standard_library_speaks():
    found = docs.docstrings("python", Path(sysconfig.get_path("stdlib")) / "json")
    assert {"python/decoder", "python/encoder", "python/__init__"} <= set(found)
    assert "decoder.JSONDecoder.decode\nReturn the Python representation" in found["python/decoder"]


def test_the_reference_manual_comes_with_the_library(monkeypatch):
    monkeypatch.setattr(docs, "docstrings", lambda corpus, root: {f"{corpus}/module": root.name})
    found = docs.documents.__wrapped__("python")
    assert found["python/module"] == Path(sysconfig.get_path("stdlib")).name
    assert found["topics/while"].startswith('The "while" statement')
    assert sum(name.startswith("topics/") for name in found) > 50
    assert docs.documents.__wrapped__("numpy") == {"numpy/module": "numpy"}
    with pytest.raises(ValueError, match="no corpus 'klingon'; there are python, numpy, emoji"):
        docs.documents("klingon")


def test_a_concept_is_two_sentences_and_those_held_out_of_the_pack_are_not_told():
    found, concepts = docs.documents("emoji"), emoji.pack().concepts
    fox = next(one for one in concepts if one.name == "fox")
    assert docs.card(fox) == "fox: animal mammal, in Animals & Nature. Keywords: animal, face, fox."
    hidden = set(np.unique(emoji.pack().split("concepts")[1]).tolist())
    assert len(hidden) > 100
    assert list(found) == [f"emoji/{one.code}" for number, one in enumerate(concepts) if number not in hidden]


def test_documents_are_held_out_by_a_hash_of_their_names():
    names = list(docs.documents("emoji"))
    for name in names[:50]:
        share = int(hashlib.sha256(f"document/{name}".encode()).hexdigest()[:8], 16) / 16**8
        assert docs.is_held_out(name) == (share < 0.05)
    assert 0.03 < np.mean([docs.is_held_out(name) for name in names]) < 0.07


def documents_in(batch: dict) -> list[str]:
    """The texts of a batch's segments, each of which must end as a document does."""
    found, end = [], docs.tokenizer().token_to_id(docs.END)
    for ids, segments, positions, mask in zip(*(batch[n] for n in FIELDS), strict=True):
        np.testing.assert_array_equal(mask, segments > 0)
        for segment in range(1, segments.max() + 1):
            *text, last = ids[segments == segment].tolist()
            assert last == end
            np.testing.assert_array_equal(positions[segments == segment], np.arange(len(text) + 1))
            found.append(docs.tokenizer().decode(text, skip_special_tokens=False))
    return found


FIELDS = ("input_ids", "segments", "positions", "attention_mask")
DATA = DocsData(length=128, corpora=("emoji",))


def test_no_held_out_document_lies_in_a_training_row():
    cards = docs.documents("emoji")
    seen, held = (documents_in(DATA.texts(split)) for split in ("train", "held_out"))
    assert sorted(seen) == sorted(text for name, text in cards.items() if not docs.is_held_out(name))
    assert sorted(held) == sorted(text for name, text in cards.items() if docs.is_held_out(name))
    assert min(len(seen), len(held)) > 30
    assert not set(seen) & set(held)
    with pytest.raises(ValueError, match="no split 'validation'; there are train and held_out"):
        DATA.texts("validation")


def test_documents_longer_than_a_row_are_cut_and_nothing_is_lost():
    short, long = (DocsData(length, ("emoji",)).texts("held_out") for length in (8, 128))
    counts = [np.sort(one["input_ids"][one["attention_mask"]]) for one in (short, long)]
    np.testing.assert_array_equal(*counts)
    assert short["input_ids"].shape[1] == 8


def test_an_epoch_is_every_training_row_once_and_a_batch_depends_on_its_number_alone():
    every = DATA.texts("train")["input_ids"]
    batches, again = DATA.batches(7, 1), DATA.batches(7, 1)
    epoch = np.concatenate([batches[i]["input_ids"] for i in range(-(-len(every) // 7))])[: len(every)]
    as_rows = lambda x: sorted(map(tuple, x.tolist()))  # noqa: E731
    assert as_rows(epoch) == as_rows(every)
    assert not np.array_equal(epoch, every)
    batch = again[3]
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
        **dict.fromkeys(FIELDS[:3], (np.int32, (7, 128))), "attention_mask": (np.bool_, (7, 128)),
    }  # fmt: skip
    for name, x in batches[3].items():
        np.testing.assert_array_equal(x, batch[name])
        np.testing.assert_array_equal(DATA.batches(7, 1, slice(2, 5))[3][name], batch[name][2:5])
    assert not np.array_equal(DATA.batches(7, 2)[3]["input_ids"], batch["input_ids"])


def test_texts_that_are_to_be_continued_end_at_the_right():
    core = docs.tokenizer()
    texts = ["Return the", "fox: animal mammal, in", ""]
    batch = DocsData(length=12).tokenize(texts)
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
        "input_ids": (np.int32, (3, 12)), "attention_mask": (np.bool_, (3, 12)),
    }  # fmt: skip
    for text, ids, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        size = len(core.encode(text).ids)
        np.testing.assert_array_equal(mask, np.arange(12) >= 12 - size)
        assert core.decode(ids[mask].tolist()) == text
    with pytest.raises(ValueError, match=r"a text has \d+ tokens, and at most 4 fit; shorten it"):
        DocsData(length=4).tokenize(["a text that is longer than that"])
