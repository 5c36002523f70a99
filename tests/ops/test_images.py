"""Preprocessing byte for byte as the originals do it, and grids resized as torch and scipy resize them.

Golden: tests/goldens/images.npz, made by make_images.py from torchvision, open_clip, transformers and real photographs.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from mmjax.ops import images

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PHOTOGRAPHS = ("landscape", "portrait", "wide", "small", "grey", "alpha")


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "goldens" / "images.npz")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_cover_equals_the_original_byte_for_byte(golden, name):
    ours = np.asarray(images.cover(golden[f"{name}_photo"], 48))
    np.testing.assert_array_equal(ours, golden[f"{name}_openai"])


@pytest.mark.parametrize("name", PHOTOGRAPHS[:-1])
@pytest.mark.parametrize(("backend", "bytes_off"), [("pil", 0), ("tv", 1)])
def test_cover_equals_transformers_up_to_its_resizing(golden, name, backend, bytes_off):
    theirs = golden[f"{name}_openai"] + golden[f"{name}_{backend}_minus_openai"].astype(int)
    difference = np.abs(np.asarray(images.cover(golden[f"{name}_photo"], 48)) - theirs)
    assert difference.max() <= bytes_off
    assert (difference != 0).mean() < 0.01


def test_preprocess_normalises_like_the_original(golden):
    ours = images.preprocess(golden["landscape_photo"], 48, MEAN, STD)
    assert ours.shape == (48, 48, 3)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[::8, ::8], golden["landscape_normalised"], atol=1e-6)


def test_normalising_on_the_device_equals_preprocess(golden):
    pixels = np.asarray(images.cover(golden["wide_photo"], 48))
    on_device = jax.jit(lambda x: images.to_float(x, MEAN, STD))(pixels)
    np.testing.assert_allclose(on_device, images.preprocess(golden["wide_photo"], 48, MEAN, STD), atol=1e-6)


def test_bytes_become_minus_one_to_one():
    x = images.to_float(jnp.array([[0, 51, 255]], jnp.uint8), mean=0.5, std=0.5)
    np.testing.assert_allclose(x, [[-1, -0.6, 1]], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_floats_are_normalised_already(dtype):
    x = jnp.array([[-1.5, 0.0, 2.0]], dtype)
    assert images.to_float(x, mean=MEAN, std=STD) is x


def test_other_integers_are_refused():
    with pytest.raises(ValueError, match="int32"):
        images.to_float(jnp.zeros((1, 3), jnp.int32), 0.5, 0.5)


def test_arrays_and_pil_images_are_the_same_to_cover(golden):
    photo = golden["portrait_photo"]
    np.testing.assert_array_equal(images.cover(Image.fromarray(photo), 48), images.cover(photo, 48))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8)])
def test_arrays_that_are_no_images_are_refused(wrong):
    with pytest.raises(ValueError, match="uint8"):
        images.cover(wrong, 48)


def test_resize_is_the_antialiased_bicubic_up_to_rounding(golden):
    photo = golden["landscape_photo"]
    ours = images.resize(photo, 31, 40)
    exact = jax.image.resize(photo.astype(np.float32), (31, 40, 3), "cubic", antialias=True)
    # Pillow rounds after each of two passes; jax handles the border alike.
    assert np.abs(ours - np.clip(exact, 0, 255)).max() <= 1.01


@pytest.mark.parametrize(("height", "width"), [(12, 9), (4, 3), (7, 10)])
@pytest.mark.parametrize("name", ["cubic", "cubic_antialias"])
def test_grids_are_resized_as_torch_does(golden, name, height, width):
    resized = getattr(images, f"resize_{name}")(golden["grid"], height, width)
    np.testing.assert_allclose(resized, golden[f"{name}_{height}_{width}"], atol=1e-5)


LIBRARIES = {  # of tests/goldens/positions.npz, made by make_positions.py
    "hf": images.resize_cubic,
    "hf_registers": images.resize_cubic_antialias,
    "timm": images.resize_cubic_antialias,
    "open_clip": images.resize_cubic_antialias,
    "dino": images.resize_cubic_offset,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_positions_are_resized_as_each_library_does(library):
    stored = np.load(Path(__file__).parents[1] / "goldens" / "positions.npz")
    table = stored["table"]  # the class token's, then 7 x 7
    cases = [name for name in stored if re.fullmatch(rf"{library}_\d+_\d+", name)]
    assert len(cases) == (2 if library == "open_clip" else 5)
    for name in cases:
        rows, columns = (int(x) for x in name.split("_")[-2:])
        resized = LIBRARIES[library](table[1:].reshape(7, 7, 3), rows, columns)
        # Values up to 2.5, sums of 16 in an order that versions of XLA choose; rules differ by 0.02 and more.
        np.testing.assert_allclose(resized.reshape(-1, 3), stored[name][1:], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(stored[name][0], table[0])


def test_the_rules_of_the_libraries_differ():
    grid = np.random.default_rng(0).normal(size=(7, 7, 3)).astype(np.float32)
    rules = (*dict.fromkeys(LIBRARIES.values()), images.resize_linear_corners)
    resized = [np.array(rule(grid, 4, 4)) for rule in rules]
    for i, one in enumerate(resized):
        assert all(np.abs(one - other).max() > 0.02 for other in resized[:i])


@pytest.mark.parametrize("length", [17, 6])
def test_text_positions_are_resized_as_torch_does(golden, length):
    # Both compute positions up to 11 in float32, each in its own order of operations.
    np.testing.assert_allclose(images.resize_linear(golden["text"], length), golden[f"linear_{length}"], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(12, 9), (4, 3), (7, 10)])
def test_corners_stay_where_scipy_leaves_them(golden, height, width):
    grid = golden["grid"]
    expected = scipy.ndimage.zoom(grid, (height / 7, width / 5, 1), order=1)
    np.testing.assert_allclose(images.resize_linear_corners(grid, height, width), expected, atol=1e-6)


def test_all_grid_rules_keep_a_grid_of_the_same_size(golden):
    for resize in (images.resize_cubic, images.resize_cubic_antialias, images.resize_linear_corners):
        np.testing.assert_allclose(resize(golden["grid"], 7, 5), golden["grid"], atol=1e-6)
    np.testing.assert_allclose(images.resize_linear(golden["text"], 11), golden["text"], atol=1e-6)


def shades(dtype) -> np.ndarray:
    return np.linspace(0, np.iinfo(dtype).max, 12).reshape(3, 4).astype(dtype)


@pytest.mark.parametrize("kind", ["grey", "grey16.png", "grey16.tif", "palette", "half clear"])
def test_files_of_all_kinds_are_shown_as_a_viewer_shows_them(kind, tmp_path):
    path, grey = tmp_path / kind.replace("grey16.", "x."), shades(np.uint8)
    if kind == "grey":
        Image.fromarray(grey).save(path, "png")
    elif kind.startswith("grey16"):
        Image.fromarray(shades(np.uint16)).save(path)
    elif kind == "palette":
        Image.fromarray(grey).convert("P").save(path, "png")
    else:  # black, half covered, on white
        Image.fromarray(np.dstack([np.zeros((3, 4, 3), np.uint8), grey])).save(path, "png")
        grey = 255 - grey
    with Image.open(path) as image:
        found = np.asarray(images.shown(image))
    assert (found.dtype, found.shape) == (np.uint8, (3, 4, 3))
    np.testing.assert_allclose(found, np.dstack([grey] * 3).astype(float), atol=1)


@pytest.mark.parametrize(("dtype", "named"), [(np.int32, "integers"), (np.float32, "floats")])
def test_pixels_without_a_range_are_refused(dtype, named, tmp_path):
    Image.fromarray(shades(np.uint8).astype(dtype)).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image, pytest.raises(ValueError, match=f"32-bit {named}.*8 or 16 bits"):
        images.shown(image)


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (1, 8, 8, 4), (1, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_not_rgb_with_channels_last_is_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"RGB with channels last, .* got \[1, .*repeat grey.*RGBA on a background"):
        images.to_float(np.zeros(shape, dtype), 0.5, 0.5)


def test_pictures_are_saved_and_several_become_an_animation(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    images.save_png(frames[0], tmp_path / "still.png")
    still = Image.open(tmp_path / "still.png")
    np.testing.assert_array_equal(still, frames[0])
    assert getattr(still, "n_frames", 1) == 1
    images.save_png(frames, tmp_path / "moving.png")
    moving = Image.open(tmp_path / "moving.png")
    assert moving.n_frames == 3
    for n, frame in enumerate(frames):
        moving.seek(n)
        np.testing.assert_array_equal(moving.convert("RGB"), frame)
    assert moving.info["duration"] == 1_600
