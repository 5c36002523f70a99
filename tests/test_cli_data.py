"""Data, weights and disks of a user's own, from the command line: they train, or answer with one sentence."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from mmjax import cli
from mmjax.data import catalogue, coco, folder

ROOT = Path(__file__).parent.parent
FOLDER = ["train", str(ROOT / "experiments" / "clip_folder.py"), "--size", "tiny", "--workdir", "run"]
BOXES = ["train", str(ROOT / "experiments" / "shikra_coco.py"), "--size", "tiny", "--workdir", "run"]
QUICK = ["--set", "steps=2", "--set", "batch_size=8", "--set", "save_every=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the folder `pictures` of 24 captioned files, with boxes and with expressions too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMJAX_DEBUG", raising=False)
    (tmp_path / "pictures").mkdir()
    rng, lines, boxes, said = np.random.default_rng(0), [], [], []
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "text": f"noise number {i}"}))
        boxes.append({"image_id": i, "category_id": i % 3, "bbox": [i / 2, 2, 6, 9], "segmentation": []})
        said.append(json.dumps({"image": f"{i}.png", "expression": f"the noise {i}", "box": [2, 3, 14, 15 + i / 8]}))
    (tmp_path / "pictures" / "captions.jsonl").write_text("\n".join(lines))
    images = [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 20} for i in range(24)]
    names = [{"id": i, "name": name} for i, name in enumerate(("Fox", "Key", "zebra crossing"))]
    contents = {"images": images, "categories": names, "annotations": boxes}
    (tmp_path / "pictures" / "annotations.json").write_text(json.dumps(contents))
    (tmp_path / "pictures" / "expressions.jsonl").write_text("\n".join(said))
    for read in (coco.read, folder.read_folder, folder.trained, catalogue.open_builder, catalogue.trained_vocabulary):
        read.cache_clear()
    return tmp_path


def mistake(arguments, capsys):
    """The sentence of a command that ends with exit code 2 and leaves no run behind."""
    capsys.readouterr()
    assert cli.main(arguments) == cli.MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("mmjax: error: ")
    assert error.count("\n") == 1
    return error


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_folder_of_pictures_trains(here, capsys):
    assert cli.main([*FOLDER, *QUICK, "--set", "data.path=pictures"]) == 0
    assert len(losses(here / "run")) == 2
    assert np.isfinite(losses(here / "run")).all()
    assert (here / "run" / "report.html").is_file()
    assert cli.main(["sample", "run", "noise number 3"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["--set", "data.annotations=expressions.jsonl"]])
def test_pictures_with_boxes_train(settings, here, capsys):
    assert cli.main([*BOXES, *QUICK, "--set", "data.path=pictures", *settings]) == 0
    assert len(losses(here / "run")) == 2
    assert np.isfinite(losses(here / "run")).all()
    numbers = json.loads((here / "run" / "evals.jsonl").read_text())
    assert [numbers[f"validation/{kind}/n"] for kind in ("what", "where", "is")] == [2, 2, 2]
    assert (here / "run" / "report.html").is_file()
    assert cli.main(["sample", "run", "where is the key?", "--image", "pictures/3.png"]) == 0


@pytest.mark.slow
def test_a_tfds_data_set_trains(here):
    builder = importlib.import_module("captioned.captioned").Captioned
    builder(data_dir=here / "tfds", file_format="array_record").download_and_prepare()
    settings = ["--set", "data.name=captioned", "--set", "data.data_dir=tfds"]
    asked = ["train", str(ROOT / "experiments" / "clip_tfds.py"), "--size", "tiny", "--workdir", "run"]
    assert cli.main([*asked, *QUICK, *settings]) == 0
    assert np.isfinite(losses(here / "run")).all()


def broken_picture(pictures):
    (pictures / "5.png").write_bytes(b"no picture")


def missing_picture(pictures):
    (pictures / "5.png").unlink()


def other_alphabet(pictures):
    path = pictures / "captions.jsonl"
    path.write_bytes(path.read_bytes().replace(b"number 5", "größe 5".encode("latin-1")))


@pytest.mark.parametrize(
    ("spoil", "settings", "parts"),
    [
        (None, ["data.path=nowhere"], ["'nowhere', which is no folder", "--set data.path=FOLDER"]),
        (None, ["data.text_column=txt"], ["captions.jsonl", "txt", "text"]),
        (None, ["data.image_column=file"], ["captions.jsonl", "file", "image"]),
        (broken_picture, [], ["5.png", "captions.jsonl", "line 6"]),
        (missing_picture, [], ["5.png", "captions.jsonl", "line 6"]),
        (other_alphabet, [], ["captions.jsonl", "line 6", "UTF-8"]),
        (None, ["batch_size=12"], ["batch_size 12", "multiple of 8"]),
        (None, ["seed=-1"], ["seed must be from 0", "got -1"]),
    ],
)  # fmt: skip
def test_a_folder_with_a_mistake_is_one_sentence(spoil, settings, parts, here, capsys):
    if spoil:
        spoil(here / "pictures")
    overrides = [word for one in ("data.path=pictures", *settings) for word in ("--set", one)]
    error = mistake([*FOLDER, *overrides], capsys)
    for part in parts:
        assert part in error
    assert not (here / "run").exists()


def spoiled(pictures, file, old, new):
    path = pictures / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "settings", "parts"),
    [
        ((), ["data.path=nowhere"], ["'nowhere', which is no folder", "--set data.path=FOLDER"]),
        ((), ["data.annotations=boxes.json"], ["no annotations", "annotations.json", "--set data.annotations=FILE"]),
        (("annotations.json", "[2.5, 2, 6, 9]", "[22, 2, 6, 9]"), [], ["annotations[5]", "not within 24 x 20"]),
        (
            ("expressions.jsonl", "[2, 3, 14, 15.5]", "[2, 3, 14, 25.5]"),
            ["data.annotations=expressions.jsonl"],
            ["expressions.jsonl, line 5", "not within 24 x 20"],
        ),
    ],
)  # fmt: skip
def test_boxes_with_a_mistake_are_one_sentence(spoil, settings, parts, here, capsys):
    if spoil:
        spoiled(here / "pictures", *spoil)
    overrides = [word for one in ("data.path=pictures", *settings) for word in ("--set", one)]
    error = mistake([*BOXES, *overrides], capsys)
    for part in parts:
        assert part in error
    assert not (here / "run").exists()


def without_one(tensors):
    del tensors["text_projection.weight"]


def with_one_more(tensors):
    tensors["nose.weight"] = np.zeros(3, np.float32)


def with_another_shape(tensors):
    tensors["text_projection.weight"] = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (without_one, ["text_projection.weight", "missing"]),
        (with_one_more, ["nose.weight", "unknown"]),
        (with_another_shape, ["text_projection.weight", "[2, 3]"]),
    ],
)
def test_weights_that_do_not_fit_are_named(spoil, parts, here, capsys):
    shutil.copytree(ROOT / "tests" / "goldens" / "hf_clip", here / "weights")
    path = here / "weights" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    spoil(tensors)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    error = mistake(["convert", "weights", "converted"], capsys)
    for part in parts:
        assert part in error
    assert not (here / "converted").exists()


def test_cut_off_weights_are_named(here, capsys):
    shutil.copytree(ROOT / "tests" / "goldens" / "hf_clip", here / "weights")
    path = here / "weights" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "model.safetensors" in mistake(["convert", "weights", "converted"], capsys)


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(here, capsys, monkeypatch):
    """Full from the second checkpoint on; when there is room again, the run goes on from the first."""
    command = [*FOLDER, *QUICK, "--set", "data.path=pictures"]
    usage, asked = shutil.disk_usage, []

    def full(path):
        asked.append(path)
        return usage(path)._replace(free=0) if len(asked) > 1 else usage(path)

    monkeypatch.setattr(shutil, "disk_usage", full)
    error = mistake(command, capsys)
    assert "cannot save step 2" in error
    assert "the checkpoint of step 1 is intact" in error
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert cli.main([*command, "--resume"]) == 0
    assert len(losses(here / "run")) == 2
