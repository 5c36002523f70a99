"""Scenes against compositing by hand: every pixel, mask and box can be worked out on paper."""

import numpy as np
import pytest

from mmjax.data import augment, emoji, scenes

RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]


def square(colour, alpha=255, side=8):
    return np.full((side, side, 4), [*colour, alpha], np.uint8)


def layout(count, scale, shift, size=1):
    """Upright objects on a white ground: scale [n], shift [n 2] in canvas sides."""
    scale, shift = (np.asarray(x, np.float32)[None] for x in (scale, shift))
    return scenes.Layout(
        np.array([count]), scale, shift, np.zeros(scale.shape, np.float32), np.zeros(scale.shape, bool),
        np.ones((1, 2, 3), np.float32), np.zeros((1, 1, 1), np.float32),
    )  # fmt: skip


def test_two_opaque_squares_the_later_on_top():
    cutouts = np.stack([square(RED), square(GREEN)])[None]
    # Half a canvas wide: columns 2 to 5, and 4 to 7, of 8; rows 2 to 5 both.
    scene = scenes.compose(cutouts, layout(2, [0.5, 0.5], [[0, 0], [0.25, 0]]), 8)
    wanted = np.full((8, 8, 3), 255, np.uint8)
    wanted[2:6, 2:6] = RED
    wanted[2:6, 4:8] = GREEN
    # The clamped read of the last column leaves a thousandth of the frame.
    np.testing.assert_allclose(scene.images[0].astype(int), wanted, atol=1)
    np.testing.assert_array_equal(scene.masks[0, 0], (wanted == RED).all(-1))  # what is seen, not what is hidden
    np.testing.assert_array_equal(scene.masks[0, 1], (wanted == GREEN).all(-1))
    np.testing.assert_allclose(scene.boxes[0], [[0.25, 0.25, 0.5, 0.75], [0.5, 0.25, 1, 0.75]])
    assert scene.present.all()


def test_alpha_blends_and_what_shows_more_owns_the_pixel():
    cutouts = np.stack([square(RED, 204), square(BLUE, 51)])[None]  # 0.8 and 0.2 opaque
    scene = scenes.compose(cutouts, layout(2, [1, 1], [[0, 0], [0, 0]]), 8)
    red = 0.8 * np.array(RED) + 0.2 * 255
    np.testing.assert_allclose(scene.images[0, 4, 4], 0.2 * np.array(BLUE) + 0.8 * red, atol=0.51)
    assert scene.masks[0, 0, 1:-1, 1:-1].all()  # 0.8 x 0.8 of the pixel is the red below
    assert not scene.masks[0, 1].any()
    np.testing.assert_array_equal(scene.present, [[True, False]])
    np.testing.assert_array_equal(scene.boxes[0, 1], 0)


def test_objects_beyond_the_count_are_neither_seen_nor_named():
    cutouts = np.stack([square(RED), square(GREEN)])[None]
    scene = scenes.compose(cutouts, layout(1, [0.5, 0.5], [[-0.25, -0.25], [0.25, 0.25]]), 8)
    assert (scene.images[0, 4:] == 255).all()
    np.testing.assert_array_equal(scene.present, [[True, False]])


def test_a_box_encloses_its_mask_exactly():
    rng = np.random.default_rng(0)
    masks = rng.random((50, 9, 13)) < 0.01
    boxes, present = scenes.enclosing(masks)
    assert 5 < (~present).sum() < 45
    for mask, box, seen in zip(masks, boxes, present, strict=True):
        rows, columns = np.nonzero(mask)
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if seen else [0] * 4
        np.testing.assert_allclose(box * [13, 9, 13, 9], wanted, atol=1e-5)


def test_objects_that_fit_lie_in_cells_of_their_own():
    config = scenes.Composer(size=30, objects=(5, 7), scale=(0.5, 1.0), rotation=0)
    layouts = scenes.draw(config, 40, np.random.default_rng(0))
    assert config.cells == 3
    low, high = (layouts.shift + 0.5 + sign * layouts.scale[..., None] / 2 for sign in (-1, 1))
    cell = np.floor((low + high) / 2 * 3)
    assert (low * 3 >= cell - 1e-5).all()
    assert (high * 3 <= cell + 1 + 1e-5).all()
    assert all(len({tuple(x) for x in row}) == 7 for row in cell)
    assert set(layouts.count) == {5, 6, 7}


@pytest.fixture(scope="module")
def data():
    return scenes.EmojiScenes(scenes.Composer(size=48, objects=(1, 4)))


def test_rows_do_not_depend_on_who_builds_them(data):
    whole = data.batches(6, seed=3)[5]
    halves = [data.batches(6, 3, rows)[5] for rows in (slice(0, 2), slice(2, 6))]
    for name, x in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)
    assert len(np.unique(whole["images"], axis=0)) == 6
    assert (data.batches(6, seed=4)[5]["images"] != whole["images"]).any()


def test_labels_masks_and_boxes_speak_of_the_same_objects(data):
    batch = data.batches(16, seed=0)[0]
    present = batch["masks"].any((-2, -1))
    np.testing.assert_array_equal(batch["label"] >= 0, present)
    np.testing.assert_array_equal(batch["boxes"].any(-1), present)
    assert batch["masks"].sum(1).max() == 1  # no pixel is of two objects
    assert present[:, 0].all()
    assert 1 < present.sum(1).mean() < 4
    covered = batch["masks"].mean((-2, -1))[present]
    assert (covered > 0.01).mean() > 0.95


def test_an_epoch_shows_each_training_drawing_first_once(data):
    _, concepts = emoji.pack().split("train")
    small = scenes.EmojiScenes(scenes.Composer(size=8, objects=(1, 1)))
    seen = np.concatenate([small.batches(500, 0)[i]["label"][:, 0] for i in range(-(-len(concepts) // 500))])
    assert len(np.setdiff1d(concepts, seen)) < 20  # but for the few whose lines vanish at 8 pixels


def test_scenes_of_a_split_stay_the_same(data):
    first, again = (data.scenes("twemoji", 5) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (data.scenes("validation", 5).images != first.images).any()


def test_misuse_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"1 <= fewest <= most, got \(3, 2\)"):
        scenes.Composer(objects=(3, 2))
    with pytest.raises(ValueError, match=r"\[1 2 S S 4\] as the layouts have it, got \[1, 3, 8, 8, 4\]"):
        scenes.compose(np.zeros((1, 3, 8, 8, 4), np.uint8), layout(1, [1, 1], [[0, 0], [0, 0]]), 8)


def test_each_object_has_colours_of_its_own_and_the_ground_keeps_its():
    cutouts = np.stack([square(RED), square(RED)])[None]
    plain = layout(2, [0.5, 0.5], [[-0.25, -0.25], [0.25, 0.25]])
    swapped, darker = np.eye(3, dtype=np.float32)[[2, 1, 0]], 0.5 * np.eye(3, dtype=np.float32)
    given = plain._replace(colour=np.stack([swapped, darker])[None], offset=np.float32([[[0, 0, 0], [0, 0.2, 0]]]))
    image = scenes.compose(cutouts, given, 8).images[0]
    np.testing.assert_allclose(image[1, 1], BLUE, atol=1)
    np.testing.assert_allclose(image[6, 6], [127.5, 51, 0], atol=1)
    assert (image[:4, 4:] == 255).all()
    config, batch = augment.Augment(), scenes.draw(scenes.Composer(), 5, np.random.default_rng(0))
    drawn = scenes.recoloured(batch, config, np.random.default_rng(1))
    assert drawn.colour.shape == (5, 3, 3, 3)
    assert scenes.take(drawn, slice(2)).offset.shape == (2, 3, 3)
    np.testing.assert_array_equal(drawn.scale, batch.scale)
    still = augment.Augment(hue=0.0, saturation=0.0, contrast=0.0, brightness=0.0)
    unchanged = scenes.compose(cutouts, scenes.recoloured(plain, still, np.random.default_rng(1)), 8)
    np.testing.assert_array_equal(unchanged.images, scenes.compose(cutouts, plain, 8).images)
