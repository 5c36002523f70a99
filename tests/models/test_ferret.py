"""Ferret against apple/ml-ferret (stored outputs, tests/goldens/make_ferret.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import clip_names
import ferret_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close, close_trees

from mmjax.models import ferret
from mmjax.nn.sampling import Sampling, generate
from mmjax.ops import points as point_ops

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "ferret.npz")
SIZES = ferret.SamplerConfig(32, (16, 4), (6, 4), transposed=True)
WIDTH = 12  # what the sampler gives


def rows(x: np.ndarray) -> np.ndarray:
    """[3 ...] of regions -> [3 2 ...] of pictures: two regions, none, one; what is missing is another's."""
    return np.stack([x[[0, 1]], x[[0, 0]], x[[2, 0]]])


def regions_of(x: jax.Array) -> jax.Array:
    """[3 2 ...] -> [3 ...], the regions that there are."""
    return jnp.stack([x[0, 0], x[0, 1], x[2, 0]])


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)


@functools.cache
def compiled(module):
    def inner(params, maps, points, starts):
        out = regions_of(module.apply({"params": params}, maps, points, starts))
        return jnp.sum(out * cotangent(out.shape)), out

    return jax.jit(jax.value_and_grad(inner, (0, 1), has_aux=True))


def run(module, params: dict, points: np.ndarray, starts: np.ndarray | None):
    """(a number, output), gradients of parameters and of the map."""
    return compiled(module)(params, GOLDEN["maps"], points, starts)


def test_the_sampler_and_its_gradients_equal_the_original():
    module, mode = ferret.Sampler(SIZES, WIDTH), "max"
    params = ferret_names.sampler(clip_names.group(GOLDEN, f"{mode}/weights"))
    starts = np.broadcast_to(GOLDEN["starts"], (3, 2, 2))
    (_, out), (by_params, by_maps) = run(module, params, rows(GOLDEN["points"]), starts)
    close("regions", out, GOLDEN[f"{mode}/out"], relative=1e-5)
    close("gradient of the map", by_maps, GOLDEN[f"{mode}/maps"], relative=1e-4)
    close_trees(by_params, ferret_names.sampler(clip_names.group(GOLDEN, f"{mode}/gradients")), relative=1e-4)


def test_with_the_mean_of_neighbours_too():  # its gradients: test_ferret_parity.py
    module = ferret.Sampler(dataclasses.replace(SIZES, pool=ferret.mean_pool), WIDTH)
    params = ferret_names.sampler(clip_names.group(GOLDEN, "mean/weights"))
    starts = np.broadcast_to(GOLDEN["starts"], (3, 2, 2))
    out = jax.jit(module.apply)({"params": params}, GOLDEN["maps"], rows(GOLDEN["points"]), starts)
    close("regions", regions_of(out), GOLDEN["mean/out"], relative=1e-5)


def test_the_plain_mean_and_its_gradients_equal_the_original():
    def named(kind):
        flat = clip_names.group(GOLDEN, f"plain/{kind}")
        return {"out": clip_names.linear({f"x.{name}": x for name, x in flat.items()}, "x")}

    points = rows(GOLDEN["plain/points"])
    (_, out), (by_params, by_maps) = run(ferret.Plain(WIDTH, transposed=True), named("weights"), points, None)
    close("regions", out, GOLDEN["plain/out"], relative=1e-5)
    close("gradient of the map", by_maps, GOLDEN["plain/maps"], relative=1e-4)
    close_trees(by_params, named("gradients"), relative=1e-4)


@pytest.mark.parametrize("i", [0, 1])
def test_points_of_a_mask_come_in_the_originals_order(i):
    mask, theirs = GOLDEN[f"mask/{i}"].T, GOLDEN[f"mask/{i}/points"]
    ours = point_ops.inside(mask, 32, np.random.default_rng(0), size=(20, 30))
    count = int(mask.sum())
    np.testing.assert_array_equal(ours[:count], theirs[:count])
    pixels = {tuple(p) for p in theirs.tolist()}
    assert {tuple(p) for p in ours.tolist()} == pixels


def test_transposed_reads_a_ramp_along_the_other_side():
    ramp = np.broadcast_to(np.arange(4.0), (4, 4))  # column by column 0 to 3
    maps = jnp.asarray(np.stack([ramp, ramp.T], -1).reshape(1, 16, 2))  # the column, the row
    points = np.array([[[[0.8, 0.1]]]], np.float32)
    np.testing.assert_allclose(ferret.looked_up(maps, points, False)[0, 0, 0], [2.4, 0.3], rtol=1e-6)
    np.testing.assert_allclose(ferret.looked_up(maps, points, True)[0, 0, 0], [0.3, 2.4], rtol=1e-6)


def test_a_region_of_fewer_pixels_than_neighbours_is_read_too():
    mask = np.zeros((20, 30), bool)
    mask[4:6, 7:9] = True
    points = point_ops.inside(mask, 32, np.random.default_rng(0))[None, None]
    module = ferret.Sampler(SIZES, WIDTH)
    params = ferret_names.sampler(clip_names.group(GOLDEN, "max/weights"))
    points = np.broadcast_to(points, (3, 2, 32, 2))  # the shapes of the test above
    starts = np.zeros((3, 2, 2), int)
    (value, out), gradients = run(module, params, points, starts)
    assert np.isfinite(value)
    np.testing.assert_array_equal(out[0], out[1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("make", "count"), [(ferret.ferret_7b, 44_069_900), (ferret.ferret_13b, 45_119_500)])
def test_published_sizes_have_as_many_parameters(make, count):
    config = make()
    maps, points = jax.ShapeDtypeStruct((1, 576, 1024), jnp.float32), jax.ShapeDtypeStruct((1, 1, 512, 2), jnp.float32)
    shapes = jax.eval_shape(config.regions(config).init, jax.random.key(0), maps, points)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count
    assert config.vocab_size == 32_001
    assert config.llava.tokens_per_image == 576


# --- the whole


CONFIG = ferret.FerretConfig.tiny()
MODEL = ferret.Ferret(CONFIG)
IMAGE, REGION = CONFIG.llava.image_token, CONFIG.region_token


@functools.cache
def example() -> tuple[dict, dict]:
    """Random variables and a batch: two regions, one, none; padding on the right."""
    rng = np.random.default_rng(3)
    texts = [
        [1, *[IMAGE] * 4, 5, REGION, 9, REGION, 2, 7, 8, 2],
        [1, *[IMAGE] * 4, 5, REGION, 2, 30, 2],
        [1, 4, 2, 6, 2],
    ]
    length = max(map(len, texts))
    ids, mask = np.zeros((3, length), np.int32), np.zeros((3, length), bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    spoken = mask & (np.arange(length) >= np.array([[10], [8], [3]]))
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "spoken": spoken,
        "images": rng.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8),
        "points": rng.random((3, 2, 16, 2)).astype(np.float32),
        "starts": rng.integers(0, 8, (3, 2, 2)),
    }
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), ids, batch["images"], batch["points"])
    draw = lambda x: (rng.normal(size=x.shape) * (x.shape[-1] ** -0.5 if len(x.shape) > 1 else 0.5)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes), batch


@functools.cache
def losses():
    variables, batch = example()

    @jax.jit
    def run(params, batch):
        return ferret.loss(MODEL, {"params": params}, batch, jax.random.key(0), 0)[0]

    return jax.jit(jax.value_and_grad(run)), variables["params"], batch


@jax.jit
def forward(variables, ids, images, points, starts, mask=None):
    return MODEL.apply(variables, ids, images, points, starts, mask).logits


def test_regions_stand_where_the_text_says_them():
    """The language model is given embeddings as NumPy puts them together, row by row."""
    variables, batch = example()
    ids = batch["input_ids"]
    table = variables["params"]["language"]["embed"]["embedding"]

    @jax.jit
    def seen(variables, images, points, starts):
        bound = MODEL.bind(variables)
        features = bound.vision(images)
        spliced = bound.splice(ids, images, features, points, starts)(jnp.asarray(table[ids]))
        return spliced, bound.projector(features), bound.regions(features, points, starts)

    given = [batch[name] for name in ("images", "points", "starts")]
    spliced, pictures, regions = (np.asarray(x) for x in seen(variables, *given))
    wanted = table[ids]
    for row, text in enumerate(ids):
        wanted[row, text == IMAGE] = pictures[row][: (text == IMAGE).sum()]
        wanted[row, text == REGION] = regions[row][: (text == REGION).sum()]
    np.testing.assert_allclose(spliced, wanted, rtol=1e-6)


def test_the_loss_is_that_of_what_the_assistant_says():
    variables, batch = example()
    given = [batch[name] for name in ("input_ids", "images", "points", "starts", "attention_mask")]
    logits = forward(variables, *given)
    value_and_gradient, params, batch = losses()
    value, gradients = value_and_gradient(params, batch)
    scores = np.asarray(logits, np.float64)[:, :-1]
    chances = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    nll = -np.take_along_axis(chances, batch["input_ids"][:, 1:, None], -1)[..., 0]
    counts = batch["spoken"][:, 1:]
    close("loss", value, (nll * counts).sum() / counts.sum(), relative=1e-5)
    flat = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    assert all(np.isfinite(x).all() for x in flat.values())
    silent = {name for name, x in flat.items() if not np.abs(x).max() > 0}
    assert all("'vision'" in name for name in silent), silent  # the tower's last block and norm are not read


def test_what_fills_up_the_regions_of_a_row_is_not_read():
    value_and_gradient, params, batch = losses()
    points = batch["points"].copy()
    points[1, 1], points[2] = 0.5, 0.25
    value, other = (value_and_gradient(params, one)[0] for one in (batch, {**batch, "points": points}))
    assert value == other
    points[0, 1] = 0.5
    assert value_and_gradient(params, {**batch, "points": points})[0] != value


def test_answers_to_a_prompt_with_regions_are_those_of_the_full_pass():
    variables, batch = example()
    prompt, lengths = batch["input_ids"][:, :10], np.array([10, 8, 3])
    mask = np.arange(10) < lengths[:, None]
    inputs = {name: batch[name] for name in ("images", "points", "starts")}
    said = np.asarray(
        generate(MODEL, variables, prompt, mask, max_new_tokens=3, sampling=Sampling(), inputs=inputs).tokens
    )
    ids = np.zeros_like(batch["input_ids"])
    for row, length in enumerate(lengths):
        ids[row, : length + 3] = *prompt[row, :length], *said[row]
    logits = np.asarray(forward(variables, ids, **inputs, mask=np.arange(13) < lengths[:, None] + 3))
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(logits[row, length - 1 : length + 2].argmax(-1), said[row])


def test_starts_are_drawn_among_the_points_of_each_block():
    starts = MODEL.config.regions(CONFIG).starts(jax.random.key(0), (40, 5))
    assert starts.shape == (40, 5, 2)
    assert starts[..., 0].max() == 15
    assert starts[..., 1].max() == 7


def test_text_and_regions_that_do_not_match_are_refused():
    ids = example()[1]["input_ids"]
    ferret.check_regions(CONFIG, ids, [2, 1, 0])
    with pytest.raises(ValueError, match=r"row 1 has 1 region tokens \(id 62\), but 2 regions"):
        ferret.check_regions(CONFIG, ids, [2, 2, 0])
    with pytest.raises(ValueError, match="input_ids have 3 rows, but regions are given for 2"):
        ferret.check_regions(CONFIG, ids, [2, 1])
    with pytest.raises(ValueError, match="row 0 says a region at token 1, before its picture"):
        ferret.check_regions(CONFIG, np.array([[1, REGION, IMAGE]]), [1])


def test_what_cannot_be_is_refused():
    variables, batch = example()
    call = functools.partial(MODEL.apply, variables, batch["input_ids"])
    with pytest.raises(ValueError, match="regions are read off a picture; give images too"):
        call(points=batch["points"])
    with pytest.raises(ValueError, match=r"each row has one picture and its regions.*got \[3, 13\], \[2, 16, 16, 3\]"):
        call(batch["images"][:2], batch["points"])
    with pytest.raises(ValueError, match=r"points must be \[B M 16 2\], got \[3, 2, 9, 2\]"):
        jax.eval_shape(call, batch["images"], batch["points"][:, :, :9])
    with pytest.raises(ValueError, match="a block of 8 points has no 9 neighbours"):
        ferret.SamplerConfig(16, (8, 4), (4, 9))
    with pytest.raises(ValueError, match="not the image_token 63, got 63"):
        dataclasses.replace(CONFIG, region_token=63)
    with pytest.raises(ValueError, match="a class token has no place"):
        dataclasses.replace(CONFIG, llava=dataclasses.replace(CONFIG.llava, class_token=True))
    with pytest.raises(ValueError, match="a square of patches, got 5"):
        ferret.looked_up(jnp.ones((1, 5, 1)), jnp.ones((1, 1, 1, 2)), False)
