"""report.html: complete, escaped, and in need of nothing from outside."""

import html.parser
import json

import numpy as np
import pytest
from PIL import Image

from mmjax import report
from mmjax.report import page

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "source", "br"}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "clip_emoji-small"
    chance = {"seen/R@10_chance": 0.1, "seen/median_rank_chance": 50.0}
    evals = [{"step": s, "seen/R@10": s / 100, "seen/median_rank": 9.0, **chance} for s in (10, 20)]
    evals[-1] |= {f"{EVIL}/R@10": 0.35, f"{EVIL}/R@10_chance": 0.007, "seen/images": 781.0}
    for step, shade in ((9, 10), (20, 200)):
        (folder / f"pictures/{step}").mkdir(parents=True)
        Image.fromarray(np.full((4, 700, 3), shade, np.uint8)).save(folder / f"pictures/{step}/co's gallery.png")
    (folder / "config.json").write_text(
        json.dumps({"about": EVIL, "overrides": [EVIL], "devices": "2 x cpu", "versions": {"jax": "0.10.2"}})
    )
    (folder / "metrics.jsonl").write_text(lines({"step": s, "loss": 5 / s, EVIL: 1.0} for s in range(1, 21)))
    (folder / "evals.jsonl").write_text(lines(evals))
    (folder / "speed.jsonl").write_text(lines([{"step": 20, "seconds": 90.0, "examples_per_second": 512.4}]))
    return folder


class Reader(html.parser.HTMLParser):
    """Collects text, tags and addresses, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.alts, self.text = [], [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "srcset", "href")]
        self.alts += [value for name, value in attributes if name == "alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""


def test_the_page_stands_alone(run):
    path = report.write(run)
    assert path == run / "report.html"
    assert [p.name for p in run.iterdir() if p.suffix == ".part"] == []
    text = path.read_text(encoding="utf-8")
    found = Reader(text)
    assert len(found.sources) >= 9  # four panels in light and dark, and the picture
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert "url(" not in text
    assert "@import" not in text


def test_what_a_user_wrote_is_text(run):
    found = Reader(page.render(page.read(run)))
    assert found.text.count(EVIL) >= 4  # about, a setting, the split in the headline and in the table
    assert "script" not in found.tags
    assert {f"Curve of {EVIL}", "co's gallery"} <= set(found.alts)
    assert "co's gallery" in found.text


def test_the_headline_is_the_split_kept_for_the_end_with_its_chance(run):
    tiles = Reader("".join(page.tiles({"a/R@10": (1, 0.35), "a/R@10_chance": (1, 0.007)}, "a")))
    assert tiles.text == "aR@100.350chance 0.00700 · 50 × chance"
    assert page.headline_split(page.read(run).evals) == EVIL
    assert page.headline_split([]) == ""
    assert page.headline_split([{"step": 1, "b/x": 1, "b/x_chance": 0.5}] * 2) == "b"


def test_a_place_in_a_ranking_is_not_compared_as_a_share():
    latest = {"median_rank": (1, 33.0), "median_rank_chance": (1, 778.0)}
    tile = Reader("".join(page.tiles(latest, "")))
    assert tile.text == "median rank33chance 778"


def test_the_facts_of_the_run_and_the_newest_pictures_are_told(run):
    found = Reader(page.render(page.read(run)))
    assert "20 steps · 1.5 minutes · 512 examples a second · 2 x cpu" in found.text
    assert "versions.jax" in found.text
    assert "seen" in found.text
    assert "781" in found.text
    [picture] = page.read(run).pictures
    assert picture.step == 20  # not 9, which comes later in the alphabet
    assert picture.png == (run / "pictures/20/co's gallery.png").read_bytes()


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')  # being written
    found = Reader(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "1 steps" in found.text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2784, "0.278"), (33.0, "33"), (1555, "1,555"), (2499.6, "2,500"), (0.000643, "0.000643"), (0.45, "0.450"),
     (0.0, "0.00"), (33.5, "33.5"), (float("nan"), "nan"), (float("inf"), "inf"), (512.4, "512")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert page.number(value) == text
