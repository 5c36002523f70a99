"""Resampler, gates and label queries against open_flamingo and query2labels (stored outputs, make_perceiver.py)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import perceiver_names
import pytest
from clip_names import group
from closeness import close, close_trees

from mmjax.models import perceiver

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "perceiver.npz")
RESAMPLER = perceiver.PerceiverResampler(perceiver.ResamplerConfig(12, 4, 2, 3, 5, 24, frames=3, media=4))
GATED = perceiver.GatedCrossAttention(num_heads=3, head_dim=4, hidden=30)
LABELS = perceiver.Query2Label(perceiver.Query2LabelConfig(6, 8, 1, 2, 2, 14, projected=True, dropout=0.0))


def weighted(x: jax.Array) -> jax.Array:
    return (x * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).sum()


def test_the_resampler_equals_open_flamingo():
    named = lambda part: perceiver_names.resampler(group(GOLDEN, f"resampler/{part}"), 2)  # noqa: E731

    def value(params):
        out = RESAMPLER.apply({"params": params}, GOLDEN["resampler/media"])
        return weighted(out), out

    (_, out), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(named("weights"))
    close("latents", out, GOLDEN["resampler/out"], relative=1e-5)
    close_trees(gradients, named("gradients"), relative=1e-4)


def test_gated_attention_equals_open_flamingo():
    named = lambda part: perceiver_names.gated(group(GOLDEN, f"gated/{part}"))  # noqa: E731
    words, media, at = (jnp.asarray(GOLDEN[f"gated/{name}"]) for name in ("words", "media", "at"))

    def value(params):
        out = GATED.apply({"params": params}, words, media, perceiver.media_times(at))
        later = GATED.apply({"params": params}, words[:, :2], media, at.sum(1, keepdims=True))
        return weighted(out) + weighted(later), (out, later)

    (_, (out, later)), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(named("weights"))
    close("words", out, GOLDEN["gated/out"], relative=1e-5)
    close("cached words", later, GOLDEN["gated/cached"], relative=1e-5)
    close_trees(gradients, named("gradients"), relative=1e-4)


def test_a_word_sees_the_picture_before_it_and_no_other():
    params = perceiver_names.gated(group(GOLDEN, "gated/weights"))
    words, media = GOLDEN["gated/words"], GOLDEN["gated/media"]
    times = perceiver.media_times(jnp.asarray(GOLDEN["gated/at"]))
    apply = jax.jit(GATED.apply)
    moved = [apply({"params": params}, words, media + 3.0 * (np.arange(3) == i)[None, :, None, None] * media, times)
             for i in (0, 1)]  # fmt: skip
    still = apply({"params": params}, words, media, times)
    for i, other in enumerate(moved):
        np.testing.assert_array_equal((np.abs(other - still) > 1e-6).any(-1), times == i + 1)


@pytest.mark.slow
def test_shut_gates_change_nothing():
    words, media = jnp.ones((2, 3, 10)), jnp.ones((2, 1, 4, 12))
    out, variables = jax.jit(GATED.init_with_output)(jax.random.key(0), words, media, jnp.ones((2, 3), int))
    np.testing.assert_array_equal(out, words)
    assert variables["params"]["attention_gate"] == variables["params"]["mlp_gate"] == 0


def test_labels_equal_query2labels():
    named = lambda part: perceiver_names.labels(group(GOLDEN, f"labels/{part}"))  # noqa: E731
    batch = {"features": GOLDEN["labels/features"].transpose(0, 2, 3, 1), "labels": GOLDEN["labels/labels"]}

    def value(params):
        variables = {"params": params}
        logits = LABELS.apply(variables, batch["features"])
        return perceiver.loss(LABELS, variables, batch, jax.random.key(0), 0)[0], logits

    (loss, logits), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(named("weights"))
    close("logits", logits, GOLDEN["labels/logits"], relative=1e-5)
    close("loss", loss, GOLDEN["labels/loss"], relative=1e-5)
    # In units of a loss without the authors' factor, so that the keys' biases stay within rounding of 0.
    ours, theirs = (jax.tree.map(lambda x: x / perceiver.SCALE, x) for x in (gradients, named("gradients")))
    close_trees(ours, theirs, relative=1e-4)


@pytest.mark.parametrize("case", ["script", "class"])
def test_the_asymmetric_loss_equals_query2labels(case):
    logits, labels = GOLDEN["asymmetric/logits"], GOLDEN["asymmetric/labels"]
    numbers = [float(x) for x in GOLDEN[f"asymmetric/{case}/numbers"]]
    value = lambda x: perceiver.SCALE * perceiver.asymmetric_loss(x, labels, *numbers).mean()  # noqa: E731
    loss, gradient = jax.value_and_grad(value)(logits)
    close("loss", loss, GOLDEN[f"asymmetric/{case}/loss"], relative=1e-5)
    close("gradient", gradient, GOLDEN[f"asymmetric/{case}/gradient"], relative=1e-4)


def test_places_equal_query2labels():
    close("places", perceiver.grid_positions(5, 7, 8), GOLDEN["places"], relative=1e-5)


@pytest.mark.slow
def test_a_label_asks_for_itself():
    """Labels do not look at each other: without one, the others get the logits they had."""
    params = perceiver_names.labels(group(GOLDEN, "labels/weights"))
    features = GOLDEN["labels/features"].transpose(0, 2, 3, 1)
    fewer = {**params, **{name: params[name][1:] for name in ("labels", "kernel", "bias")}}
    few = perceiver.Query2Label(dataclasses.replace(LABELS.config, labels=5))
    close("five", jax.jit(few.apply)({"params": fewer}, features), GOLDEN["labels/logits"][:, 1:], relative=1e-5)


def test_published_sizes_and_wrong_ones():
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    media = jnp.zeros((1, 1, 1, 3, 1024))
    made = jax.eval_shape(perceiver.PerceiverResampler(perceiver.ResamplerConfig()).init, jax.random.key(0), media)
    layer = 3 * 2 * 1024 + 1024 * 512 * 4 + 2 * 1024 * 4096
    assert count(made) == 64 * 1024 + 6 * layer + 2 * 1024
    config = perceiver.ResamplerConfig.tiny()
    few = perceiver.PerceiverResampler(dataclasses.replace(config, frames=2))
    with pytest.raises(ValueError, match="config.frames is 2, got 3"):
        few.init(jax.random.key(0), jnp.zeros((1, 1, 3, 2, 16)))
    with pytest.raises(ValueError, match=r"media must be \[B M F V 16\], got \[1, 1, 2, 16\]"):
        few.init(jax.random.key(0), jnp.zeros((1, 1, 2, 16)))
    labels = perceiver.Query2Label(perceiver.Query2LabelConfig.tiny())
    with pytest.raises(ValueError, match="features must be 16 wide"):
        labels.init(jax.random.key(0), jnp.zeros((1, 2, 2, 10)))
