"""Photographs of other packages, where those are installed; and what is said where they aren't."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from mmjax.data import photos


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"package imgaug, which isn't installed; pip install 'mmjax\[docs\]'"):
        photos.quokka()
    with pytest.raises(FileNotFoundError, match="package scikit-image, which isn't installed"):
        photos.photographs()


def test_files_of_a_package_are_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"scikit-image, which is installed without data/astronaut\.png"):
        photos.photographs()
    for name in photos.PHOTOGRAPHS:
        Image.new("L" if name == "camera.png" else "RGB", (7, 5), 9).save(tmp_path / "skimage" / "data" / name)
    found = photos.photographs()
    assert [photo.name for photo in found] == ["astronaut", "chelsea", "coffee", "rocket", "camera"]
    assert {photo.image.shape for photo in found} == {(5, 7, 3)}


def test_the_quokka_is_marked():
    if importlib.util.find_spec("imgaug") is None:
        pytest.skip("imgaug isn't installed")
    photo = photos.quokka()
    assert photo.image.shape == (643, 960, 3)
    (thing,) = photo.things
    assert thing.names == ("quokka", "animal")
    mask = thing.mask(960, 643)
    rows, columns = np.nonzero(mask)
    around = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_allclose(around, thing.box, atol=6)
    assert 0.5 < mask.sum() / np.prod(np.array(thing.box[2:]) - thing.box[:2]) < 0.9
    assert len(photo.points) == 7
    assert sum(mask[int(y), int(x)] for x, y in photo.points.values()) >= 6
    x = {name: x for name, (x, _) in photo.points.items()}
    assert x["eye_left"] < x["nose"] < x["eye_right"]


def test_the_photographs_are_as_described():
    if importlib.util.find_spec("skimage") is None:
        pytest.skip("scikit-image isn't installed")
    found = {photo.name: photo for photo in photos.photographs()}
    shapes = {name: photo.image.shape[:2] for name, photo in found.items()}
    assert shapes == {
        "astronaut": (512, 512),
        "chelsea": (300, 451),
        "coffee": (400, 600),
        "rocket": (427, 640),
        "camera": (512, 512),
    }
    assert (np.ptp(found["camera"].image, axis=-1) == 0).all()
    red, _, blue = found["rocket"].image.mean((0, 1))
    assert blue > red  # of the sky
    red, _, blue = found["coffee"].image.mean((0, 1))
    assert red > blue
