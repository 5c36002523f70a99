"""The stored features of stamps are what the build script says; of stamps of one caption it takes the first."""

import numpy as np
from PIL import Image

from mmjax.data import build_stamp_features as build


def test_the_asset_holds_eight_layers_that_see_and_four_that_read():
    stored = np.load(build.ASSET)
    shapes = {name: stored[name].shape for name in stored}
    images = [shapes.pop(f"image/{i}") for i in range(8)]
    assert images == [(626, width) for width in (16, 24, 40, 80, 112, 192, 320, 1280)]
    assert [shapes.pop(f"text/{i}") for i in range(4)] == [(626, 384)] * 4
    assert shapes == {"name": (626,)}
    assert len(np.unique(stored["name"])) > 610
    for name in stored:
        if name != "name":
            assert stored[name].dtype == np.int8
            np.testing.assert_array_equal(np.abs(stored[name]).max(axis=1), 127)


def test_one_stamp_for_each_caption_and_no_symbols(tmp_path):
    root = tmp_path / "usr/share/tuxpaint/stamps"
    for name, caption in {
        "b/cat": "A cat.",
        "a/tom": "A cat.",
        "b/dog": "A dog.",
        "symbols/x": "X.",
        "b/none": "",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (3, 9)).save(path.with_suffix(".png"))
        if caption:
            path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Etwas.\n", encoding="utf-8")
    found = [(str(path.relative_to(root)), caption) for path, caption in build.stamps(tmp_path)]
    assert found == [("a/tom.png", "A cat."), ("b/dog.png", "A dog.")]
    pixels = build.picture(root / "a/tom.png")  # all transparent
    assert pixels.shape == (224, 224, 3)
    assert (pixels == 255).all()


def test_bytes_keep_directions():
    x = np.random.default_rng(0).normal(size=(5, 200))
    stored = build.to_bytes(x).astype(float)
    cosine = (x * stored).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(stored, axis=1)
    assert cosine.min() > 0.9998
