"""report.html: one self-contained page about a run, from the files of its folder.

    config.json, metrics.jsonl, evals.jsonl, speed.jsonl, pictures/<step>/<title>.png  ->  report.html

On top stand the first numbers of the split that was kept for the end, each beside its chance ("twemoji/R@10" and
"twemoji/R@10_chance"), so an experiment lists first the eval that it is about.
Everything that comes from a user (names, titles, settings) is escaped; nothing is loaded from outside.
"""

import base64
import io
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.ops import images as image_ops
from mmjax.report import plots
from mmjax.report.style import CSS

CHANCE = "_chance"  # ends the name of what a blind guess scores
TILES, TRAIN_PANELS, EVAL_PANELS = 4, 2, 6  # what is shown at once; further panels unfold


class Picture(NamedTuple):
    title: str
    step: int
    png: bytes


class Run(NamedTuple):
    """What a run folder holds."""

    name: str
    config: dict[str, Any]
    metrics: list[dict[str, float]]  # one for each logged training step
    evals: list[dict[str, float]]  # one for each evaluation
    speed: list[dict[str, float]]  # what the clock said now and then
    pictures: list[Picture]  # the newest of each title


def read_lines(path: Path) -> list[dict]:
    """JSON lines; none where the file is missing. A last line without its end is being written and is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def read(workdir: str | Path) -> Run:
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir} is no run folder: it holds no config.json")
    newest: dict[str, Picture] = {}
    for path in sorted(workdir.glob("pictures/*/*.png"), key=lambda path: (int(path.parent.name), path.name)):
        newest[path.stem] = Picture(path.stem, int(path.parent.name), path.read_bytes())
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    lines = [read_lines(workdir / name) for name in ("metrics.jsonl", "evals.jsonl", "speed.jsonl")]
    return Run(workdir.resolve().name, config, *lines, list(newest.values()))


def write(workdir: str | Path) -> Path:
    """Makes report.html in a run folder, and says where. May be called while the run goes on."""
    path = Path(workdir) / "report.html"
    unfinished = path.with_suffix(".html.part")
    unfinished.write_text(render(read(workdir)), encoding="utf-8")
    return unfinished.replace(path)  # a browser never sees half a page


def render(run: Run) -> str:
    latest = {key: (line["step"], line[key]) for line in run.evals for key in line if key != "step"}
    headline = headline_split(run.evals)
    body = [heading(run), *tiles(latest, headline), *training(run), *evaluations(run)]
    if latest:
        body += ["<h2>All numbers</h2>", card(table(latest))]
    if run.pictures:
        body += ["<h2>Pictures</h2>"]
        body += map(picture, sorted(run.pictures, key=lambda item: not item.title.startswith(headline)))
    body += ["<h2>The run</h2>", card(information(run.config))]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(run.name)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def headline_split(evals: list[dict[str, float]]) -> str:
    """The first split that was measured at the end only; where there is none, the one measured last."""
    measured = [[split_of(key)[0] for key in line if key + CHANCE in line] for line in evals[-1:]]
    before = {split_of(key)[0] for line in evals[:-1] for key in line}
    splits = measured[0] if measured else []
    return next((split for split in splits if split not in before), splits[-1] if splits else "")


def heading(run: Run) -> str:
    facts = [f"{number(run.metrics[-1]['step'])} steps" if run.metrics else "no step logged yet"]
    if run.speed:
        facts.append(f"{run.speed[-1]['seconds'] / 60:.1f} minutes")
    if rates := [line["examples_per_second"] for line in run.speed if "examples_per_second" in line]:
        facts.append(f"{np.median(rates):,.0f} examples a second")
    facts += [str(run.config[key]) for key in ("devices",) if key in run.config]
    return (
        f"<h1>{escape(run.name)}</h1><p class='lead'>{escape(run.config.get('about') or '')}</p>"
        f"<p class='note'>{escape(' · '.join(facts))}</p>"
    )


def number(value: float) -> str:
    """Whole numbers in full, others to three digits."""
    if isinstance(value, int) or (np.isfinite(value) and value == int(value) and abs(value) >= 1):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def split_of(key: str) -> tuple[str, str]:
    """ "twemoji/R@10" -> ("twemoji", "R@10")."""
    split, _, name = key.rpartition("/")
    return split, name


def words(name: str) -> str:
    return escape(name.replace("_", " "))


def card(inner: str, title: str = "", kind: str = "") -> str:
    return f"<section class='card {kind}'>{f'<h3>{title}</h3>' if title else ''}{inner}</section>"


def tiles(latest: dict[str, tuple[int, float]], headline: str) -> Iterable[str]:
    """The first numbers of the split `headline` that have a chance."""
    keys = [key for key in latest if key + CHANCE in latest and split_of(key)[0] == headline]
    yield "<div class='tiles'>"
    for key in keys[:TILES]:
        value, chance = latest[key][1], latest[key + CHANCE][1]
        share = chance < 1 and value <= 1  # a place in a ranking starts at 1
        times = f" · {value / chance:,.{0 if value >= 10 * chance else 1}f} × chance" if share and chance else ""
        bar = f"<div class='bar'><i style='width:{value:.2%}'></i><b style='left:{chance:.2%}'></b></div>"
        yield card(
            f"<div class='note'>{escape(headline)}</div><div class='what'>{words(split_of(key)[1])}</div>"
            f"<div class='value'>{number(value)}</div>{bar if share else ''}"
            f"<div class='note'>chance {number(chance)}{times}</div>"
        )
    yield "</div>"


def training(run: Run) -> Iterable[str]:
    series: dict[str, list[tuple[float, float]]] = {}
    for line in run.metrics:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float):
                series.setdefault(key, []).append((line["step"], value))
    names = sorted(series, key=lambda name: name != "loss")  # the loss first, the others as they were logged
    if names:
        yield "<h2>Training</h2>"
        yield panels({name: [plots.Series(name, *zip(*series[name], strict=True))] for name in names}, TRAIN_PANELS)


def evaluations(run: Run) -> Iterable[str]:
    """One panel for each measure that was taken more than once, one line for each split, chance dotted."""
    taken: dict[str, dict[str, list]] = {}
    for line in run.evals:
        for key in line:
            if key + CHANCE in line:
                split, name = split_of(key)
                taken.setdefault(name, {}).setdefault(split, []).append((line["step"], line[key], line[key + CHANCE]))
    drawn = {}
    for name, splits in taken.items():
        if max(map(len, splits.values())) > 1:
            points = [(split, *zip(*rows, strict=True)) for split, rows in splits.items()]
            drawn[name.replace("_", " ")] = [
                plots.Series(split or name, steps, values, chance[-1]) for split, steps, values, chance in points
            ]
    if drawn:
        yield "<h2>Evaluations during training</h2>"
        yield panels(drawn, EVAL_PANELS)


def panels(series: dict[str, list[plots.Series]], shown: int) -> str:
    """A grid of curves; those after the first `shown` unfold."""
    every = [curve(title, lines) for title, lines in series.items()]
    more = f"<details><summary>{len(every) - shown} more</summary>{grid(every[shown:])}</details>"
    return grid(every[:shown]) + (more if len(every) > shown else "")


def grid(cards: list[str]) -> str:
    return f"<div class='panels'>{''.join(cards)}</div>"


def curve(title: str, lines: list[plots.Series]) -> str:
    """One panel, drawn for light and for dark, of which the browser takes one."""
    light, dark = (data_url(png(plots.curves({title: lines}, dark=dark))) for dark in (False, True))
    return card(
        f"<picture><source media='(prefers-color-scheme: dark)' srcset='{dark}'>"
        f"<img src='{light}' alt='Curve of {escape(title, quote=True)}'></picture>"
    )


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image_ops.save_png(image, buffer)
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def picture(item: Picture) -> str:
    width = int.from_bytes(item.png[16:20], "big")  # of the PNG's header
    image = f"<img src='{data_url(item.png)}' alt='{escape(item.title, quote=True)}' loading='lazy'>"
    title = f"{escape(item.title)} <span class='step'>step {number(item.step)}</span>"
    return card(f"<div class='scroll picture{'' if width > 600 else ' small'}'>{image}</div>", title)


def table(latest: dict[str, tuple[int, float]]) -> str:
    """Measures down, splits across; the step only where they differ."""
    shown = [key for key in latest if not key.endswith(CHANCE)]
    splits = list(dict.fromkeys(split_of(key)[0] for key in shown))
    steps = {latest[key][0] for key in shown}
    rows = []
    for name in dict.fromkeys(split_of(key)[1] for key in shown):
        cells = [latest_cell(latest, f"{split}/{name}" if split else name, len(steps) > 1) for split in splits]
        rows.append(f"<tr><th>{words(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th class='number'>{escape(split)}</th>" for split in splits)
    body = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class='scroll'><table>{body}</table></div>"


def latest_cell(latest: dict[str, tuple[int, float]], key: str, with_step: bool) -> str:
    if key not in latest:
        return "<td class='number'>–</td>"
    step, value = latest[key]
    notes = [f"chance {number(latest[key + CHANCE][1])}"] if key + CHANCE in latest else []
    notes += [f"step {number(step)}"] if with_step else []
    return f"<td class='number'>{number(value)}<small>{' · '.join(notes)}</small></td>"


def information(config: dict) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in flat(config))
    return f"<table class='info'><tbody>{rows}</tbody></table>"


def flat(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Nested dicts -> ("model.depth", "12") for each leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
