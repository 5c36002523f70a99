"""DiT against facebookresearch/DiT (stored, tests/goldens/make_diffusion.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import diffusion_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close, close_trees, group
from einops import rearrange

from mmjax.models import diffusion as dit
from mmjax.nn.embeddings import Labels
from mmjax.ops import diffusion
from mmjax.weights import diffusion as dit_weights

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = dit.DiTConfig((8, 8), 3, 2, 16, 3, 2, 64, functools.partial(Labels, (3,)))
MODEL = dit.DiT(CONFIG)
apply = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def golden():
    found = np.load(GOLDENS / "diffusion.npz")
    return {name: x.astype(np.float32) if (x := found[name]).dtype == np.float16 else x for name in found}


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": diffusion_names.dit(group(golden, "weights"))}


def last(x: np.ndarray) -> np.ndarray:
    """Channels last."""
    return rearrange(x, "... c h w -> ... h w c")


@pytest.fixture(scope="module")
def inputs(golden):
    found = group(golden, "inputs")
    return {**found, "x": last(found["x"]), "noise": last(found["noise"]), "labels": found["labels"].astype(np.int32)}


def test_outputs_equal_the_original(golden, variables, inputs):
    output = apply(variables, inputs["x"], inputs["labels"], inputs["t"], inputs["dropped"])
    close("output", output, last(golden["outputs"]), relative=1e-4)


def test_guidance_equals_the_original(golden, variables, inputs):
    denoise = dit.denoiser(MODEL, variables, inputs["labels"], 3.5)
    close("guided", jax.jit(denoise)(inputs["x"], 500), last(golden["guided"]), relative=1e-4)


def test_the_loss_and_its_gradients_equal_the_original(golden, variables, inputs):
    batch = {"images": inputs["x"], "condition": inputs["labels"]}

    def loss(params):
        terms = dit.noise_terms(MODEL, {"params": params}, batch, inputs["t"], inputs["noise"], inputs["dropped"])
        return sum(terms.values()).mean(), terms

    gradients, terms = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for name, found in terms.items():
        close(f"loss {name}", found, golden[f"loss/{name}"], relative=1e-5)
    close_trees(gradients, diffusion_names.dit(group(golden, "gradients")), relative=1e-4)


@pytest.mark.parametrize("way", ["ancestral", "ddim"])
def test_walks_with_the_same_noise_equal_the_original(golden, variables, inputs, way):
    chain = diffusion.chain(diffusion.linear_betas(), 4)
    start, noise = last(golden["walk/start"]), jnp.asarray(last(golden["walk/noise"]))
    denoise = dit.denoiser(MODEL, variables, inputs["labels"][:2])
    walk = functools.partial(diffusion.ddim, eta=0.6) if way == "ddim" else diffusion.ancestral
    found = jax.jit(lambda start: walk(chain, denoise, start, lambda step: noise[step]))(start)
    close(way, found, last(golden[way]), relative=1e-4)


def test_weights_come_and_go_by_the_originals_names(golden, variables):
    tensors = group(golden, "weights")
    loaded = dit_weights.load(MODEL, tensors)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])
    saved = dit_weights.save(MODEL, loaded)
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        close(name, saved[name], tensor, relative=1e-6 if name == "pos_embed" else 0)


@pytest.mark.parametrize(
    ("make", "millions"), [(dit.dit_xl, 674.835), pytest.param(dit.dit_s, 32.865, marks=pytest.mark.slow)]
)
def test_published_sizes(make, millions):
    """The original counts its fixed positions too: 0.3 and 0.1 M more."""
    shapes = dit_weights.abstract(dit.DiT(make()))
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 3) == millions


WIDE = dataclasses.replace(
    dit.DiTConfig.tiny(), size=(4, 8), channels=2, learn_variance=False, condition=dit.Signal, depth=1
)


@pytest.fixture(scope="module")
def wide():
    model = dit.DiT(WIDE)
    rng = np.random.default_rng(0)
    batch = {"images": rng.normal(size=(3, 4, 8, 2)), "condition": 5 + 30 * rng.normal(size=(3, 6))}
    batch = {name: x.astype(np.float32) for name, x in batch.items()}
    fresh = jax.jit(model.init)(jax.random.key(0), **batch)
    leaves, tree = jax.tree.flatten(fresh)
    randomised = [0.3 * rng.normal(size=x.shape).astype(np.float32) + (x == 1) for x in leaves]
    return model, fresh, jax.tree.unflatten(tree, randomised), batch


@pytest.mark.slow
def test_of_a_fresh_model_the_loss_is_that_of_nothing(wide):
    model, fresh, _, batch = wide
    noise, t = np.ones_like(batch["images"]), np.array([1, 5, 999])
    terms = jax.jit(lambda v: dit.noise_terms(model, v, batch, t, noise, np.zeros(3, bool)))(fresh)
    np.testing.assert_allclose(terms["error"], 1)


@pytest.mark.slow
def test_rows_and_columns_stay_apart_on_a_picture_that_is_no_square(wide):
    """A patch's answer does not change where its own pixels and the position stay, but for attention; without that, a
    change of the first row of patches changes just the first two rows of pixels."""
    model, _, variables, batch = wide
    cut = jax.tree.map(jnp.zeros_like, variables["params"]["layers"]["attention"]["out"])
    params = {**variables["params"], "layers": {**variables["params"]["layers"]}}
    params["layers"]["attention"] = {**params["layers"]["attention"], "out": cut}
    images = batch["images"].copy()
    images[:, :2, 4:6] += 1
    run = jax.jit(lambda images: model.apply({"params": params}, images, batch["condition"]))
    changed = np.abs(run(images) - run(batch["images"])).max((0, 3)) > 1e-6
    expected = np.zeros((4, 8), bool)
    expected[:2, 4:6] = True
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.slow
def test_losses_train_every_parameter_and_the_null_condition_only_where_it_is_shown(wide):
    model, _, variables, batch = wide
    loss = jax.jit(lambda v, rng: jax.grad(lambda v: dit.flow_loss(model, v, batch, rng, 0)[0])(v))
    dropping = [rng for rng in range(20) if dit.draw(WIDE, jax.random.key(rng), batch["images"])[2].any()]
    assert 0 < len(dropping) < 20
    kept = next(rng for rng in range(20) if rng not in dropping)
    gradients = loss(variables, jax.random.key(dropping[0]))
    assert all(np.any(x != 0) for x in jax.tree.leaves(gradients))
    assert not np.any(loss(variables, jax.random.key(kept))["params"]["condition"]["null"])


@pytest.mark.slow
def test_a_flow_is_asked_at_its_time_and_guided_by_one_is_not_guided(wide):
    model, _, variables, batch = wide
    rng, condition = jax.random.key(1), batch["condition"]
    draw = jax.jit(functools.partial(dit.sample_flow, model), static_argnames=("steps", "guidance"))
    one, also = (draw(variables, rng, condition, steps=2, guidance=g) for g in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(one, also, atol=1e-4)
    x, _ = dit.start(WIDE, rng, condition)
    run = jax.jit(model.apply)
    for t in (0.0, 500.0):
        x = x + 0.5 * run(variables, x, condition, jnp.full(3, t))
    np.testing.assert_allclose(one, x, atol=1e-4)


def test_a_flow_with_a_variance_and_pictures_of_other_sizes_are_refused(variables, inputs):
    batch = {"images": inputs["x"], "condition": inputs["labels"]}
    with pytest.raises(ValueError, match="set learn_variance=False"):
        dit.flow_loss(MODEL, variables, batch, jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"images must be \[B 8 8 3\], got \[4, 4, 8, 3\]"):
        MODEL.apply(variables, inputs["x"][:, :4], inputs["labels"])
    with pytest.raises(ValueError, match="multiples of patch_size"):
        dataclasses.replace(WIDE, size=(4, 7))
