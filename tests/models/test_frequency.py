"""Frequencies as tokens: against a plain account (stored, tests/goldens/make_frequency.py), then what users rely on."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clip_names import close, close_trees, group
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from mmjax.models import frequency, frequency_tokenizer, mar
from mmjax.models.frequency_tokenizer import TokenizerConfig
from mmjax.nn.embeddings import Labels
from mmjax.nn.sampling import Sampling
from mmjax.ops import fourier

SIZES = {"width": 8, "depth": 2, "num_heads": 2, "hidden": 12, "condition": partial(Labels, (3, 2))}
CONFIGS = {
    "fft": frequency.FrequencyConfig(
        TokenizerConfig((7, 6), 3, edges=(0.5, 1.5, 3.2), group=3, step=0.7, clip=3, floor=0.6), **SIZES
    ),
    "dct": frequency.FrequencyConfig(
        TokenizerConfig((6, 9), 3, fourier.DCT, 3, edges=(0.5, 1.2), group=4, step=0.4, clip=3),
        partial(frequency.Denoised, head_width=10, head_depth=1, repeats=2, noise_steps=4), **SIZES,
    ),
}  # fmt: skip


def stored(name: str) -> tuple[frequency.Frequency, dict, dict]:
    """The model, its variables and the golden of a case."""
    golden = group(np.load(Path(__file__).parents[1] / "goldens" / "frequency.npz"), name)
    return (
        frequency.Frequency(CONFIGS[name]),
        {"params": tree(golden, "weights"), "statistics": group(golden, "statistics")},
        golden,
    )


def tree(golden: dict, kind: str) -> dict:
    return unflatten_dict({tuple(key.split("/")): x for key, x in group(golden, kind).items()})


def test_the_loss_of_codes_its_bits_and_gradients_equal_the_plain_account():
    model, variables, golden = stored("fft")
    model = frequency.Frequency(dataclasses.replace(model.config, drop=0.0))
    batch = {"images": golden["images"], "label": golden["labels"]}

    def loss(params):
        value, aux = frequency.loss(model, {**variables, "params": params}, batch, jax.random.key(0), 0)
        return value, (aux.metrics, aux.weight)

    (value, (metrics, weight)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close("loss", value, golden["loss"], relative=1e-5)
    close_trees(gradients, tree(golden, "gradients"), relative=1e-4)
    bits = golden["losses"].sum((1, 2)).mean() / math.log(2) / 42
    assert metrics["bits_per_pixel"] == pytest.approx(float(bits), rel=1e-5)
    assert weight == 4 * model.config.tokenizer.tokens


def test_the_loss_of_a_diffusion_and_its_gradients_equal_the_plain_account():
    model, variables, golden = stored("dct")
    live = model.config.tokenizer.live

    def run(self):
        tokens = self.tokens(golden["images"])
        z = self.states(tokens, golden["labels"])
        return z, jnp.where(live, self.head.losses_at(z, tokens, golden["t"], golden["noise"]), 0)

    def loss(params):
        z, losses = nn.apply(run, model)({**variables, "params": params})
        return jnp.mean(losses.sum(-1) / live.sum(-1)), (z, losses)

    (value, (z, losses)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close("z", z, golden["z"], relative=1e-5)
    close("losses", losses, golden["losses"], relative=1e-4)
    close("loss", value, golden["loss"], relative=1e-5)
    close_trees(gradients, tree(golden, "gradients"), relative=1e-4)


@pytest.mark.slow
def test_what_is_dropped_is_not_told_and_bits_are_of_each_picture():
    model, variables, golden = stored("fft")
    label, always = golden["labels"], dataclasses.replace(model.config, drop=1.0)

    @jax.jit
    def run(variables):
        batch = {"images": golden["images"], "label": label}
        dropped, _ = frequency.loss(frequency.Frequency(always), variables, batch, jax.random.key(0), 0)
        bits = (frequency.bits_per_pixel(model, variables, golden["images"], x) for x in (label, jnp.full((4, 2), -1)))
        return dropped, *bits

    dropped, bits, untold = run(variables)
    np.testing.assert_allclose(bits, golden["losses"].sum((1, 2)) / math.log(2) / 42, rtol=1e-5)
    same = np.asarray(golden["labels"] < 0).all(1)
    np.testing.assert_allclose(untold[same], bits[same], rtol=1e-5)
    assert (untold[~same] != bits[~same]).all()
    assert abs(dropped - golden["loss"]) > 1e-4


def test_tokens_are_spread_over_the_places_of_the_next_band_in_order():
    np.testing.assert_array_equal(frequency.spread(2, 5).argmax(1), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(frequency.spread(5, 2).argmax(0), [0, 0, 0, 1, 1])
    for tokens, places in ((1, 1), (3, 3), (2, 5), (5, 2), (31, 53), (53, 23)):
        found = frequency.spread(tokens, places)
        assert found.shape == (places, tokens)
        assert found.any(0).all()
        assert found.any(1).all()
        assert found.sum() == max(tokens, places)


ORDERS = (
    frequency_tokenizer.low_to_high, frequency_tokenizer.high_to_low, frequency_tokenizer.raster,
    frequency_tokenizer.shuffled,
)  # fmt: skip


def random_model(head=frequency.Scalars, modulated: bool = False, **tokenizer) -> tuple[frequency.Frequency, dict]:
    """With random weights everywhere, and statistics of random pictures."""
    tokenizer = TokenizerConfig.tiny(**{"size": (6, 4), "edges": (0.5, 1.6), **tokenizer})
    config = frequency.FrequencyConfig.tiny(tokenizer=tokenizer, head=head, modulated=modulated)
    model = frequency.Frequency(config)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, *tokenizer.size, 3)), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, jnp.zeros(4, int))
    random = np.random.default_rng(1)
    params = jax.tree.map_with_path(
        lambda path, x: np.float32((path[-1].key == "scale") + 0.5 * random.normal(size=x.shape)), shapes["params"]
    )
    return model, {"params": params, "statistics": frequency_tokenizer.fit(config.tokenizer, images)}, images


@pytest.mark.parametrize("order", [ORDERS[0], *(pytest.param(x, marks=pytest.mark.slow) for x in ORDERS[1:])])
def test_tokens_know_all_of_the_bands_before_them_and_nothing_else(order):
    """Bit by bit: a token of band k moves what is known of every later band, and of no other."""
    model, variables, images = random_model(order=order, basis=fourier.DCT, block=2, edges=(0.5, 1.2))
    layout = model.config.tokenizer.layout
    states = jax.jit(partial(model.apply, method="states"))
    tokens = np.asarray(jax.jit(partial(model.apply, method="tokens"))(variables, images))
    label = jnp.arange(4)
    before = np.asarray(states(variables, tokens, label))
    of = np.repeat(np.arange(len(layout.sizes)), layout.sizes)
    for token in range(len(of)):
        other = tokens.copy()
        other[:, token, 0] = np.where(other[:, token, 0] == 7, -7, 7)
        moved = (np.asarray(states(variables, other, label)) != before).any((0, 2))
        np.testing.assert_array_equal(moved, of > of[token])


@pytest.mark.slow
def test_no_gradient_reaches_a_token_from_its_own_band_or_a_later_one():
    model, variables, images = random_model(partial(frequency.Denoised, head_width=8, head_depth=1))
    tokens = jax.jit(partial(model.apply, method="tokens"))(variables, images[:1])
    of_z = jax.jit(jax.jacrev(lambda x: model.apply(variables, x, jnp.zeros(1, int), method="states")[0].sum(-1)))
    reaches = np.abs(of_z(tokens)[:, 0]).max(-1) > 0  # [L L], from a row to a column
    of = np.repeat(np.arange(3), model.config.tokenizer.layout.sizes)
    np.testing.assert_array_equal(reaches, of[None] < of[:, None])


@pytest.mark.slow
@pytest.mark.parametrize(("order", "modulated"), [(ORDERS[0], False), (ORDERS[1], True)])
def test_what_is_known_with_a_cache_is_what_is_known_without(order, modulated):
    model, variables, images = random_model(order=order, modulated=modulated)
    c, label = model.config, jnp.array([0, 3, -1, 2])

    @jax.jit
    def run(variables):
        tokens = model.apply(variables, images, method="tokens")
        told = model.apply(variables, label, method="told")
        cache = frequency.KVCache.empty(c.depth, 4, 1 + c.tokenizer.tokens, c.num_heads, c.width // c.num_heads)
        found = []
        for band, known in enumerate(c.tokenizer.layout.ends[:-1]):
            z, cache = model.apply(variables, tokens[:, :known], told, cache, band, method="extend")
            found.append(z)
        return jnp.concatenate(found, axis=1), model.apply(variables, tokens, label, method="states")

    found, whole = run(variables)
    np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.slow
def test_greedy_pictures_are_those_of_the_whole_network_and_padding_stays_empty():
    """Also guided: with each band the likeliest of what the network says, told and untold, of the tokens so far."""
    model, variables, _ = random_model()
    c, label = model.config, jnp.array([0, 3])
    draw = partial(frequency.sample, model, guidance=3.0, schedule=mar.constant, sampling=Sampling(temperature=0.0))
    found = jax.jit(draw)(variables, jax.random.key(0), label)

    @jax.jit
    def likeliest(variables):
        logits = lambda self, label: self.head.logits(self.states(found, label))  # noqa: E731
        told, free = (nn.apply(logits, model)(variables, x) for x in (label, jnp.full(2, -1)))
        return free + 3 * (told - free)

    logits = np.where(c.tokenizer.live[..., None], likeliest(variables), np.arange(15) == 7)
    np.testing.assert_array_equal(found, logits.argmax(-1) - 7)
    assert (np.abs(found)[:, c.tokenizer.live] > 0).mean() > 0.5
    progressive, last = jax.jit(
        lambda v: (frequency.progressive(model, v, found), model.apply(v, found, method="pictures"))
    )(variables)
    assert progressive.shape == (3, 2, 6, 4, 3)
    np.testing.assert_allclose(progressive[-1], last, atol=1e-6)
    np.testing.assert_allclose(progressive[0].std((1, 2)), 0, atol=1e-6)


@pytest.mark.slow
def test_pictures_by_diffusion_obey_the_condition_and_the_key():
    model, variables, _ = random_model(partial(frequency.Denoised, head_width=8, head_depth=1, noise_steps=3))
    draw = jax.jit(partial(frequency.sample, model, guidance=2.0))
    one, same, other_key, other_label = (
        draw(variables, jax.random.key(key), jnp.array([label, 1])) for key, label in ((0, 0), (0, 0), (1, 0), (0, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other_key)[:, model.config.tokenizer.live].all()
    np.testing.assert_array_equal(one[1], other_label[1])
    assert (one[0] != other_label[0]).any()
    assert not one[:, ~model.config.tokenizer.live].any()


@pytest.mark.slow
def test_at_first_all_codes_are_equally_likely():
    model, variables, images = random_model()
    fresh = jax.jit(model.init)(jax.random.key(0), images, jnp.zeros(4, int))
    losses = jax.jit(model.apply)({**variables, "params": fresh["params"]}, images, jnp.zeros(4, int))
    live = model.config.tokenizer.live
    np.testing.assert_allclose(losses[:, live], math.log(15), rtol=1e-6)
    assert not losses[:, ~live].any()


def test_what_cannot_be_is_told():
    model, variables, images = random_model()
    other = frequency.Frequency(dataclasses.replace(model.config, head=frequency.Denoised))
    with pytest.raises(ValueError, match="only Scalars say how likely a picture is"):
        frequency.bits_per_pixel(other, variables, images, jnp.zeros(4, int))
    wrong = {**variables["statistics"], "mean": np.full((24, 3), np.nan, np.float32)}
    with pytest.raises(ValueError, match='"statistics" hold a mean that is NaN'):
        model.apply({**variables, "statistics": wrong}, images, method="tokens")


def waves(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes: grey waves along rows or along columns, with any phase and a little noise."""
    label, phase = rng.integers(0, 2, count), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = np.mgrid[:8, :8]
    wave = np.cos(2 * np.pi * np.where(label[:, None, None], y, x) / 8 + phase)
    pictures = 128 + 60 * wave[..., None] + 6 * rng.normal(size=(count, 8, 8, 3))
    return np.clip(pictures, 0, 255).astype(np.uint8), label


@pytest.mark.slow
def test_two_kinds_of_waves_are_learned_and_told_apart():
    rng = np.random.default_rng(0)
    tokenizer = TokenizerConfig.tiny(step=1.0, clip=3)
    config = frequency.FrequencyConfig.tiny(tokenizer=tokenizer, width=32, condition=partial(Labels, (2,)))
    model = frequency.Frequency(config)
    images, labels = waves(rng, 512)
    variables = jax.jit(model.init)(jax.random.key(0), images[:2], labels[:2])
    variables = {**variables, "statistics": frequency_tokenizer.fit(tokenizer, images)}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key, batch):
        value = lambda params: frequency.loss(model, {**variables, "params": params}, batch, key, 0)[0]  # noqa: E731
        updates, state = optimizer.update(jax.grad(value)(params), state)
        return optax.apply_updates(params, updates), state

    params = variables["params"]
    state = optimizer.init(params)
    for i in range(200):
        pictures, label = waves(rng, 32)
        params, state = step(params, state, jax.random.key(i), {"images": pictures, "label": label})
    variables = {**variables, "params": params}
    bits = jax.jit(partial(frequency.bits_per_pixel, model))
    right, wrong = (bits(variables, images, x).mean() for x in (labels, 1 - labels))
    assert right < wrong - 0.1
    label = jnp.arange(64) % 2
    tokens = jax.jit(partial(frequency.sample, model, guidance=1.5))(variables, jax.random.key(1), label)
    spectrum = np.abs(np.fft.fft2(model.apply(variables, tokens, method="pictures").mean(-1)))
    found = spectrum[:, 1, 0] > spectrum[:, 0, 1]
    assert (found == np.asarray(label, bool)).mean() > 0.9
