"""Tables of README.md, made from experiments/results.jsonl and plans.jsonl: no number is typed by hand.

    python -m mmjax.report.results README.md [--check]

A table stands between two marks, and is replaced there (--check only compares, and exits with 1 where one is stale):

    <!-- results:clip_emoji twemoji/R@10 twemoji/median_rank -->
    <!-- /results -->

The mark names experiments, "llama_dpo,llama_grpo", or one size of them as "clip_emoji-small", and the metrics to show;
without metrics, all that have a chance. A run that has none of them is left out. Of runs with the same size, overrides
and seed the last recorded one counts. Each line holds `stem size overrides seed commit steps devices date seconds
metrics judge`, as `mmjax train --record` writes it.

A table of questions has a row for each metric and a column for each run, beside how many questions there were and what
the commonest answer scores:

    <!-- answers:llama_scenes-small,shikra_scenes-small twemoji/what twemoji/where -->
    <!-- /answers -->

The table of plans stands between <!-- plans --> and <!-- /plans -->: the newest line of each experiment, size,
overrides and topology, as `mmjax plan --record` writes it.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.report.page import CHANCE, number

RESULTS = Path("experiments/results.jsonl")
TABLE = re.compile(
    r"(?P<open><!-- (?P<kind>results|answers):(?P<name>[\w,-]+)(?P<metrics>[^>]*?) -->\n)"
    r".*?(?P<close><!-- /(?P=kind) -->)",
    re.S,
)
MARK = re.compile(r"<!-- (results|answers):")
PLANS = Path("experiments/plans.jsonl")
PLAN_TABLE = re.compile(r"(?P<open><!-- plans -->\n).*?(?P<close><!-- /plans -->)", re.S)


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The recorded runs, oldest first."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `mmjax train FILE --record` writes it")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def runs_of(name: str, results: Sequence[dict]) -> list[dict]:
    """The newest run of each size, overrides and seed, in the order in which they were first recorded."""
    newest = {}
    for line in results:
        if name in (line["stem"], f"{line['stem']}-{line['size']}"):
            newest[line["size"], tuple(line["overrides"]), line["seed"]] = line
    if not newest:
        known = sorted({f"{line['stem']}-{line['size']}" for line in results})
        raise ValueError(f"no result is recorded for {name!r}; there are {', '.join(known) or 'none'}")
    return list(newest.values())


def table(name: str, metrics: Sequence[str], results: Sequence[dict]) -> str:
    """A Markdown table, one row for each run, chance beside each number."""
    runs = [run for one in name.split(",") for run in runs_of(one, results)]
    metrics = metrics or [key for key in runs[-1]["metrics"] if key + CHANCE in runs[-1]["metrics"]]
    missing = [key for key in metrics if all(key not in run["metrics"] for run in runs)]
    if missing:
        raise ValueError(
            f"results of {name!r} hold no {', '.join(missing)}; they hold {', '.join(runs[-1]['metrics'])}"
        )
    judged = any(run["judge"] for run in runs)  # what networks say of pictures counts only beside the networks' names
    rows = [["run", *metrics, "steps", "minutes", "seed", "devices", "commit", *(["judge"] if judged else [])]]
    for run in (run for run in runs if any(key in run["metrics"] for key in metrics)):
        what = " ".join([run["stem"], run["size"], *(f"`{one}`" for one in run["overrides"])])
        minutes = f"{run['seconds'] / 60:.1f}"
        numbers = [cell(run["metrics"], key) for key in metrics]
        rows.append(
            [what, *numbers, number(run["steps"]), minutes, str(run["seed"]), run["devices"], run["commit"] or "–"]
        )
        rows[-1] += [run["judge"] or "–"] if judged else []
    return markdown(rows)


def answers(name: str, metrics: Sequence[str], results: Sequence[dict]) -> str:
    """A Markdown table, one row for each metric that is a share of questions, one column for each run."""
    runs = [run for one in name.split(",") for run in runs_of(one, results)]
    rows = [["question", "n", "commonest", *(" ".join([run["stem"], run["size"]]) for run in runs)]]
    for key in metrics:
        asked = [run["metrics"] for run in runs if f"{key}/n" in run["metrics"]]
        if not asked:
            raise ValueError(f"results of {name!r} hold no {key} of counted questions")
        counts = sorted({number(one[f"{key}/n"]) for one in asked})
        majority = number(asked[0][f"{key}/majority"]) if f"{key}/majority" in asked[0] else "–"
        rows.append([key, ", ".join(counts), majority, *(share(run["metrics"], key) for run in runs)])
    return markdown(rows)


def share(metrics: dict[str, float], key: str) -> str:
    if f"{key}/n" not in metrics:
        return "–"
    low, high = wilson(metrics[key], metrics[f"{key}/n"])
    return f"**{number(metrics[key])}** ({low:.2f} to {high:.2f})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def cell(metrics: dict[str, float], key: str) -> str:
    """The number; beside it chance or what the commonest answer scores, and the interval of a share of n questions."""
    if key not in metrics:
        return "–"
    beside = [("chance", key + CHANCE), ("majority", f"{key}/majority")]
    said = [f"{word} {number(metrics[name])}" for word, name in beside if name in metrics]
    if f"{key}/n" in metrics:
        low, high = wilson(metrics[key], metrics[f"{key}/n"])
        said.append(f"{low:.2f} to {high:.2f}, n {number(metrics[f'{key}/n'])}")
    return f"**{number(metrics[key])}**" + (f" ({'; '.join(said)})" if said else "")


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson 1927, doi 10.1080/01621459.1927.10502953: the 95 % interval of a share that was seen in `count` trials."""
    z = 1.959964
    middle, scale = share + z**2 / (2 * count), 1 + z**2 / count
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def plan_table(plans: Sequence[dict]) -> str:
    """A Markdown table, one row for each experiment and machine; numbers are of one device."""
    newest = {(one["stem"], one["size"], tuple(one["overrides"]), one["topology"]): one for one in plans}
    rows = [["experiment", "topology", "mesh", "batch", "GiB", "of GiB", "TFLOP a step", "collectives", "commit"]]
    for one in newest.values():
        what = " ".join([one["stem"], one["size"], *(f"`{text}`" for text in one["overrides"])])
        counts = ", ".join(f"{count} {name}" for name, count in one["collectives"].items() if count)
        sizes = [f"**{one['gib']:.2f}**", f"{one['gib_limit']:.2f}", f"{one['flops'] / 1e12:,.1f}"]
        rows.append(
            [what, one["topology"], one["mesh"], f"{one['batch_size']:,}", *sizes, counts, one["commit"] or "–"]
        )
    return markdown(rows)


def render(text: str, results: Sequence[dict], plans: Sequence[dict] = ()) -> str:
    """`text` with every table made anew."""
    if len(PLAN_TABLE.findall(text)) != text.count("<!-- plans -->"):
        raise ValueError("a mark <!-- plans --> has no <!-- /plans --> after it, or is not on its own line")
    text = PLAN_TABLE.sub(lambda m: m["open"] + plan_table(plans) + m["close"], text)
    whole = len(TABLE.findall(text))
    if whole != len(MARK.findall(text)):
        raise ValueError(
            "a mark <!-- results:NAME ... --> has no <!-- /results --> after it, or is not on its own line"
        )
    make = {"results": table, "answers": answers}
    return TABLE.sub(lambda m: m["open"] + make[m["kind"]](m["name"], m["metrics"].split(), results) + m["close"], text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmjax.report.results", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if a table is stale")
    arguments = parser.parse_args(argv)
    before = arguments.file.read_text(encoding="utf-8")
    plans = arguments.results.with_name(PLANS.name)
    after = render(before, read(arguments.results), read(plans) if plans.exists() else [])
    if arguments.check:
        if stale := before != after:
            print(f"{arguments.file} is stale; run: python -m mmjax.report.results {arguments.file}", file=sys.stderr)
        return int(stale)
    arguments.file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
