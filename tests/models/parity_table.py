"""How far each model is from its original, as a table: runs the comparisons of the marker `parity` and collects them.

    python tests/models/parity_table.py                      prints it
    python tests/models/parity_table.py --write README.md    and puts it between the marks <!-- parity --> there

A cell is the largest absolute difference and, in brackets, that difference divided by the largest value: of the array,
for gradients of all gradients of the model. Everything is float32 on the CPU. Needs the [parity] extra.
"""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
import closeness  # noqa: E402

COLUMNS = {"forward": "forward", "loss": "loss", "gradient": "gradients", "cached": "cached decoding"}
TABLE = re.compile(r"(<!-- parity -->\n).*?(<!-- /parity -->)", re.S)


def subject(path: Path) -> str:
    """What a file of tests compares: the first clause of its docstring."""
    return re.split(r"[,:;]", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), maxsplit=1)[0]


def cell(records: Sequence[closeness.Record]) -> str:
    if not records:
        return "–"
    absolute = max(record.absolute for record in records)
    if records[0].part == "gradient":
        tests = {record.test for record in records}
        together = [[record for record in records if record.test == test] for test in tests]
        relative = max(max(r.absolute for r in same) / max(r.largest for r in same) for same in together)
    else:
        relative = max(record.absolute / record.largest for record in records)
    return f"{absolute:.0e} ({relative:.0e})"


def table(records: Sequence[closeness.Record], root: Path) -> str:
    """A row for each file of tests, in the order in which they ran."""
    files = dict.fromkeys(record.test.split("::")[0] for record in records)
    rows = [["compared", *COLUMNS.values(), "cases"]]
    for file in files:
        mine = [record for record in records if record.test.startswith(f"{file}::")]
        cells = [cell([record for record in mine if record.part == part]) for part in COLUMNS]
        rows.append([subject(root / file), *cells, str(len({record.test for record in mine}))])
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def written(text: str, table: str) -> str:
    """`text` with the table between its marks."""
    if len(TABLE.findall(text)) != 1:
        raise ValueError("expected the marks <!-- parity --> and <!-- /parity --> once, each on a line of its own")
    return TABLE.sub(lambda found: found[1] + table + found[2], text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="README.md")
    asked = parser.parse_args(argv)
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*_parity.py"))
    code = pytest.main(["-q", "-m", "parity", "--rootdir", str(ROOT), *files])
    if code != 0 or not closeness.RECORDS:
        why = f"pytest ended with exit code {int(code)}" if code else "nothing was compared; install mmjax[parity]"
        print(f"no table: {why}", file=sys.stderr)
        return 1
    made = table(closeness.RECORDS, ROOT)
    print(made)
    if asked.write is not None:
        asked.write.write_text(written(asked.write.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
