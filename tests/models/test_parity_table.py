"""The table of differences is made of what the comparisons recorded."""

import numpy as np
import parity_table
import pytest
from closeness import RECORDS, Record, close, close_trees


@pytest.fixture
def records(monkeypatch):
    """What a test adds is taken away again."""
    count = len(RECORDS)
    yield lambda: RECORDS[count:]
    del RECORDS[count:]


def test_comparisons_are_recorded_under_their_column(records):
    close("loss", 2.0, 2.00001, relative=1e-4)
    close("cached logits", np.ones(3), np.ones(3), relative=0)
    close("hidden", np.array([1.0, -4.0]), np.array([1.0, -4.5]), relative=1)
    close_trees({"a": np.ones(2)}, {"a": np.ones(2)}, relative=0)
    assert [record.part for record in records()] == ["loss", "cached", "forward", "gradient"]
    assert records()[2][2:] == ("hidden", 0.5, 4.5)
    assert records()[0].test.startswith("tests/models/test_parity_table.py::test_comparisons_are_recorded")


def test_a_cell_holds_the_worst_case():
    cases = [Record("a.py::1 (call)", "forward", "x", 2e-6, 10.0), Record("a.py::2 (call)", "forward", "x", 1e-6, 1.0)]
    assert parity_table.cell(cases) == "2e-06 (1e-06)"
    assert parity_table.cell([]) == "–"


def test_gradients_are_relative_to_all_of_the_same_test():
    noise = Record("a.py::1 (call)", "gradient", "key/bias", 1e-8, 1e-8)  # rounding around 0
    assert parity_table.cell([noise, noise._replace(absolute=2e-7, largest=2.0)]) == "2e-07 (1e-07)"


def test_a_row_for_each_file_with_what_its_docstring_compares(tmp_path):
    (tmp_path / "a.py").write_text('"""CLIP next to another, live: more."""')
    cases = [Record(f"a.py::{i} (call)", "loss", "loss", 1e-7, 1.0) for i in range(3)]
    lines = parity_table.table(cases, tmp_path).splitlines()
    assert lines[0] == "| compared | forward | loss | gradients | cached decoding | cases |"
    assert lines[2] == "| CLIP next to another | – | 1e-07 (1e-07) | – | – | 3 |"
    assert len(lines) == 3


def test_the_readme_has_one_row_for_each_live_comparison():
    files = sorted((parity_table.ROOT / "tests").rglob("test_*_parity.py"))
    assert len(files) >= 8
    text = (parity_table.ROOT / "README.md").read_text(encoding="utf-8")
    (rows,) = parity_table.TABLE.finditer(text)
    found = [row.split(" | ")[0].removeprefix("| ") for row in rows[0].splitlines()[3:-1]]
    hint = "make it anew: python tests/models/parity_table.py --write README.md"
    assert sorted(found) == sorted(parity_table.subject(file) for file in files), hint


def test_it_is_written_between_the_marks_only():
    assert parity_table.written("a\n<!-- parity -->\nold\n<!-- /parity -->\nb", "new\n") == (
        "a\n<!-- parity -->\nnew\n<!-- /parity -->\nb"
    )
    with pytest.raises(ValueError, match="expected the marks"):
        parity_table.written("nothing", "new\n")
