"""Photographs that come inside of packages, for demonstrations: one with a box, an outline and points, five without.

    quokka()       of imgaug 0.4: an animal whose box, outline and points people have marked
    photographs()  of scikit-image: astronaut, cat, coffee, rocket, photographer

The packages need not be imported, and imgaug may be installed without what it needs: only their files are read. Nothing
of them is in mmjax. The quokka is under imgaug's licence (MIT); the others were given to the public domain, by NASA, by
SpaceX and by their photographers. Captions are our own words; imgaug itself calls the quokka "animal".
"""

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmjax.data.coco import Labelled

PHOTOGRAPHS = {  # file -> caption
    "astronaut.png": "an astronaut in an orange suit in front of a flag and a model of the space shuttle",
    "chelsea.png": "the face of a cat with green eyes",
    "coffee.png": "a cup of coffee on a red saucer with a spoon",
    "rocket.jpg": "a rocket on its launch pad between four towers at dusk",
    "camera.png": "a man in a black coat looking through a camera on a tripod",
}


class Photo(NamedTuple):
    name: str
    image: np.ndarray  # uint8 [H W 3]
    caption: str
    things: tuple[Labelled, ...]  # what is annotated
    points: dict[str, tuple[float, float]]  # (x, y) in pixels, by what is there: "eye_left", to the viewer's left


def quokka() -> Photo:
    """643 x 960 pixels. The box was drawn by hand, and lies up to 5 pixels inside of the outline and up to 2 beyond."""
    folder = _installed("imgaug", "quokka_annotations.json")
    file = folder / "quokka_annotations.json"
    marked = json.loads(file.read_text(encoding="utf-8"))
    box, outline = marked["bounding_boxes"][0], marked["polygons"][0]["keypoints"]
    thing = Labelled(
        names=("quokka", box["label"]),
        box=(box["x1"], box["y1"], box["x2"], box["y2"]),
        segmentation=[[point[axis] for point in outline for axis in ("x", "y")]],
        crowd=False,
        where=str(file),
    )
    points = {point["label"]: (float(point["x"]), float(point["y"])) for point in marked["keypoints"]}
    return Photo("quokka", _read(folder / "quokka.jpg"), "a quokka standing on sand", (thing,), points)


def photographs() -> tuple[Photo, ...]:
    """In the order above; the last one is grey, three times."""
    folder = _installed("skimage", "data/astronaut.png") / "data"
    return tuple(Photo(Path(name).stem, _read(folder / name), caption, (), {}) for name, caption in PHOTOGRAPHS.items())


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _installed(package: str, file: str) -> Path:
    """The folder of a package that is not imported."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / file).is_file():
            return Path(folder)
    project = {"skimage": "scikit-image"}.get(package, package)
    state = f"is installed without {file}" if found else "isn't installed"
    raise FileNotFoundError(f"the photographs are in the package {project}, which {state}; pip install 'mmjax[docs]'")
