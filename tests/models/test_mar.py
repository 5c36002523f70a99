"""MAR against LTH14/mar (stored, tests/goldens/make_mar.py), then what users rely on."""

import dataclasses
import functools
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import diffusion_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close, close_trees, group
from einops import rearrange
from safetensors.numpy import save_file

from mmjax import weights
from mmjax.models import mar
from mmjax.ops import diffusion
from mmjax.weights import mar as mar_weights

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = mar.MARConfig(8, 3, 2, 16, 2, 2, 64, 3, 12, 2, (5,), dropout=0.0, drop=0.5, repeats=3)
MODEL = mar.MAR(CONFIG)
COUNT, STEPS = 13, 4
read = jax.jit(functools.partial(MODEL.apply, method="read"))


@pytest.fixture(scope="module")
def golden():
    found = np.load(GOLDENS / "mar.npz")
    return {name: x.astype(np.float32) if (x := found[name]).dtype == np.float16 else x for name in found}


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": diffusion_names.mar(group(golden, "weights"))}


@pytest.fixture(scope="module")
def batch(golden):
    images = rearrange(golden["inputs/images"], "b c h w -> b h w c")
    return {"images": images, "label": golden["inputs/labels"].astype(np.int32)}


@pytest.fixture(scope="module")
def draws(golden):
    found = group(golden, "inputs")
    return mar.Draws(found["orders"], jnp.asarray(COUNT), found["drop"], found["t"], found["noise"])


def test_the_head_equals_the_original(golden, variables):
    found = group(golden, "inputs")
    run = jax.jit(functools.partial(MODEL.apply, method="denoise"))
    output = run(variables, found["x"], found["time"], found["z"])
    close("head", output, golden["head"], relative=1e-5)


@pytest.mark.parametrize(
    ("name", "count", "shown"),
    [("z", COUNT, 4), pytest.param("z", COUNT, 16, marks=pytest.mark.slow), ("z_blind", 16, 16)],
)
def test_what_is_known_of_masked_tokens_equals_the_original(golden, variables, batch, draws, name, count, shown):
    """However many slots are encoded, of which some are padding; and where nothing is visible."""
    places = draws.orders[:, 16 - shown :]
    visible = np.broadcast_to(np.arange(16 - shown, 16) >= count, places.shape)
    tokens = mar.patchify(batch["images"], 2)
    z = read(variables, tokens, places, visible, batch["label"], np.zeros(3, bool))
    close(name, z, golden[name], relative=1e-5)


def test_the_loss_and_its_gradients_equal_the_original(golden, variables, batch, draws):
    def loss(params):
        value, aux = mar.loss_of(MODEL, {"params": params}, batch, draws, jax.random.key(0))
        return value, aux.weight

    (value, weight), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close("loss", value, golden["loss"], relative=1e-5)
    close_trees(gradients, diffusion_names.mar(group(golden, "gradients")), relative=1e-4)
    assert weight == COUNT * 3 * 3


DRAWINGS = {
    "guided": mar.Drawing(5, 2.5, mar.rising, 0.9, STEPS),
    "constant": mar.Drawing(2, 1.5, mar.constant, 1.0, STEPS),
    "free": mar.Drawing(3, temperature=0.95, noise_steps=STEPS),
}


@pytest.mark.parametrize("case", ["guided", *(pytest.param(x, marks=pytest.mark.slow) for x in ("constant", "free"))])
def test_pictures_from_the_same_noise_equal_the_original(golden, variables, batch, draws, case):
    noises = jnp.asarray(golden[f"drawn/{case}/noise"])

    def noise(filling, step, places):
        return jnp.take_along_axis(noises[filling, step], places[..., None], axis=1)

    model = mar.MAR(dataclasses.replace(CONFIG, betas=diffusion.linear_betas))
    label = jnp.full(3, -1) if case == "free" else batch["label"]
    found = jax.jit(lambda v: mar.fill(model, v, draws.orders, label, noise, DRAWINGS[case]))(variables)
    expected = rearrange(golden[f"drawn/{case}/images"], "b c h w -> b h w c")
    close(case, found, expected, relative=1e-4)


def test_a_checkpoint_of_the_original_is_read_and_the_average_is_what_counts(golden, variables, tmp_path):
    tensors = group(golden, "weights")
    other = {f"model.{name}": np.zeros_like(x) for name, x in tensors.items()}
    save_file(
        other | {f"model_ema.{name}": np.ascontiguousarray(x) for name, x in tensors.items()},
        tmp_path / "m.safetensors",
    )
    model, loaded = weights.load_mar(tmp_path / "m.safetensors", channels=3, num_heads=2)
    kept = ("dropout", "drop", "repeats")  # what only training reads, no tensor tells
    default = {name: getattr(mar.MARConfig(), name) for name in kept}
    assert model.config == dataclasses.replace(CONFIG, **default)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])
    saved = mar_weights.save(model, loaded)
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(saved[name], tensor)
    with pytest.raises(ValueError, match="tokens of 12 numbers, which no patch of 16 channels has"):
        weights.load_mar(tmp_path / "m.safetensors")


def test_settings_beside_the_weights_do_not_keep_a_file_from_being_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as file:
        file.writestr("x/data.pkl", pickle.dumps({"args": Namespace(lr=1.0), "model_ema": {}}))
    with pytest.raises(ValueError, match="is no LTH14/mar's MAR: z_proj.weight is missing"):
        weights.load_mar(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (mar.mar_h, 942.40),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((mar.mar_b, 207.92), (mar.mar_l, 478.33))),
    ],
)
def test_published_sizes(make, millions):
    shapes = mar_weights.abstract(mar.MAR(make()))
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 2) == millions


def test_what_is_masked_does_not_reach_what_is_known(variables, batch, draws):
    tokens = mar.patchify(batch["images"], 2)
    places, visible = draws.orders, np.broadcast_to(np.arange(16) >= COUNT, (3, 16))
    hidden, shown = (np.eye(16, dtype=bool)[draws.orders[:, i]][..., None] for i in (COUNT - 1, COUNT))
    run = lambda tokens: read(variables, tokens, places, visible, batch["label"], np.zeros(3, bool))  # noqa: E731
    before = run(tokens)
    np.testing.assert_array_equal(run(tokens + 9 * hidden), before)
    assert np.all(np.abs(run(tokens + 9 * shown) - before).max(-1) > 1e-4)


def test_only_masked_tokens_count(variables, batch, draws):
    out = jax.jit(lambda v: MODEL.apply(v, **batch, draws=draws).masked)(variables)
    expected = np.zeros((3, 16), bool)
    for row, order in zip(expected, draws.orders, strict=True):
        row[order[:COUNT]] = True
    np.testing.assert_array_equal(out, expected)


@pytest.mark.slow
def test_of_a_fresh_head_the_error_is_that_of_saying_nothing():
    model = mar.MAR(mar.MARConfig.tiny())
    batch = {"images": jnp.ones((2, 4, 4, 3)), "label": jnp.array([0, 3])}
    variables = jax.jit(model.init)(jax.random.key(0), **batch)
    draws = jax.jit(lambda rng: mar.draw(model.config, rng, 2))(jax.random.key(1))
    error = jax.jit(lambda v: model.apply(v, **batch, draws=draws).error)(variables)
    np.testing.assert_allclose(error, np.mean(draws.noise**2, -1), rtol=1e-5)


def test_a_share_between_the_least_and_all_is_masked():
    counts = np.array(jax.vmap(lambda rng: mar.masked_count(rng, 256, 0.7))(jax.random.split(jax.random.key(0), 4000)))
    assert counts.min() >= 180
    assert counts.max() == 256
    np.testing.assert_allclose(counts.mean() / 256, 0.867 + 0.5 / 256, atol=0.004)  # rounded up
    assert mar.MARConfig().most_shown == 76


def test_orders_are_permutations_and_differ():
    orders = np.array(mar.random_orders(jax.random.key(0), 5, 16))
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(16), (5, 16)))
    assert len({tuple(order) for order in orders}) == 5


def test_fillings_follow_a_cosine_and_take_at_least_one_token_each():
    np.testing.assert_array_equal(mar.masked_after(256, 4), [256, 236, 181, 97, 0])
    np.testing.assert_array_equal(mar.masked_after(256, 256), np.arange(256, -1, -1))
    taken = -np.diff(mar.masked_after(256, 64))
    assert taken[0] == 1
    assert taken.min() == 1
    assert taken.sum() == 256
    for steps in (0, 257):
        with pytest.raises(ValueError, match="between 1 and 256"):
            mar.masked_after(256, steps)


def test_guidance_rises_from_one_to_nearly_all():
    assert mar.rising(3.0, np.array([256, 128, 0]), 256).tolist() == [1.0, 2.0, 1 + 2 * 255 / 256]


@pytest.mark.slow
def test_guidance_by_one_is_none(variables, batch):
    how = mar.Drawing(2, noise_steps=2)
    draw = jax.jit(functools.partial(mar.sample, MODEL), static_argnames="how")
    one, also = (
        draw(variables, jax.random.key(0), batch["label"], how=dataclasses.replace(how, guidance=g))
        for g in (1.0, 1.0 + 1e-6)
    )
    close("guided by one", also, one, relative=1e-4)
    assert one.shape == (3, 8, 8, 3)
    assert np.all(np.isfinite(one))


@pytest.mark.slow
def test_in_training_classes_are_dropped_and_dropout_acts(variables, batch):
    model = mar.MAR(dataclasses.replace(CONFIG, dropout=0.3))
    loss = jax.jit(lambda rng, draws: mar.loss_of(model, variables, batch, draws, rng)[0])
    draws = mar.draw(CONFIG, jax.random.key(0), 3)
    first, second = loss(jax.random.key(0), draws), loss(jax.random.key(1), draws)
    assert first != second
    tokens, nothing = mar.patchify(batch["images"], 2), np.zeros((3, 16), bool)
    told, dropped, none = (
        read(variables, tokens, draws.orders, nothing, label, drop)
        for label, drop in (
            (batch["label"], np.zeros(3, bool)),
            (batch["label"], np.ones(3, bool)),
            (np.full(3, -1), np.zeros(3, bool)),
        )
    )
    np.testing.assert_array_equal(dropped, none)
    assert np.abs(told - dropped).max() > 1e-3


def test_latents_of_another_size_are_refused(variables, batch):
    with pytest.raises(ValueError, match=r"latents \[B 8 8 3\], got \[3, 4, 8, 3\]"):
        MODEL.apply(variables, batch["images"][:, :4], batch["label"])
    with pytest.raises(ValueError, match="multiple of patch_size"):
        dataclasses.replace(CONFIG, side=7)


def test_patches_keep_their_channels_first_and_come_back():
    latents = np.arange(4 * 4 * 3).reshape(1, 4, 4, 3)
    tokens = mar.patchify(latents, 2)
    np.testing.assert_array_equal(tokens[0, 1, :4], latents[0, :2, 2:, 0].ravel())
    np.testing.assert_array_equal(mar.unpatchify(tokens, 2), latents)
    assert diffusion.chain(CONFIG.betas(), STEPS).timesteps.tolist() == [0, 333, 666, 999]
