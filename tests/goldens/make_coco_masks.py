"""Makes coco_masks.json: polygons and masks as pycocotools turns them into pixels and text.

    pip install pycocotools; python tests/goldens/make_coco_masks.py

Masks are stored as the run lengths that pycocotools counts, uncompressed, which tests read with a loop of their own.
"""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco


def runs(mask: np.ndarray) -> list[int]:
    lengths, value = [0], 0
    for pixel in np.asarray(mask).T.ravel():  # down the columns
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def polygons(rng: np.random.Generator):
    """(polygons, height, width)"""
    for _ in range(40):
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        low, high = (-5, 5) if rng.random() < 0.3 else (0, 0)  # some hang over the edge
        shapes = []
        for _ in range(rng.integers(1, 4)):
            points = rng.uniform([low, low], [width + high, height + high], (rng.integers(3, 12), 2))
            decimals = int(rng.integers(0, 3))
            shapes.append(np.round(points, decimals).ravel().tolist())
        yield shapes, height, width
    yield [[2.0, 2.0, 2.0, 2.0, 20.5, 3.0, 20.5, 17.0, 2.0, 17.0]], 20, 30  # a point twice
    yield [[0, 0, 30, 0, 30, 20, 0, 20]], 20, 30  # all of it
    yield [[3.2, 3.2, 3.3, 3.2, 3.3, 3.3]], 20, 30  # less than a pixel


def main() -> None:
    rng = np.random.default_rng(0)
    drawn = []
    for shapes, height, width in polygons(rng):
        mask = coco.decode(coco.merge(coco.frPyObjects(shapes, height, width)))
        drawn.append({"polygons": shapes, "size": [height, width], "runs": runs(mask)})
    coded = []
    for share in (0.0, 0.02, 0.3, 0.5, 0.97, 1.0):
        for height, width in ((1, 1), (7, 5), (40, 61), (300, 3)):
            mask = rng.random((height, width)) < share
            text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
            coded.append({"size": [height, width], "runs": runs(mask), "counts": text})
    path = Path(__file__).with_name("coco_masks.json")
    path.write_text(json.dumps({"polygons": drawn, "masks": coded}) + "\n")


if __name__ == "__main__":
    main()
