"""EnCodec against transformers' own numbers (tests/goldens/make_hf_audio.py), then what users rely on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from audio_names import close_forward, close_training, load
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.models import encodec
from mmjax.parallel import mesh as meshes
from mmjax.weights import encodec as names


def test_codes_and_sound_equal_the_original():
    model, variables, arrays = load("hf_encodec/causal")
    assert arrays["waveforms"].shape[1] % model.config.codec.hop
    close_forward(model, variables, arrays)


@pytest.mark.slow
def test_codes_and_sound_equal_the_original_without_causality_and_shortcuts():
    model, variables, arrays = load("hf_encodec/symmetric")
    assert not model.config.codec.causal
    close_forward(model, variables, arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_encodec/causal", "hf_encodec/symmetric"])
def test_the_loss_and_gradients_through_codes_equal_the_original(name):
    model, variables, arrays = load(name)
    close_training(model, variables, arrays, names.RULES(model))


@pytest.mark.slow
def test_published_sizes():
    """Counted in transformers' models, without the lengths of normalised kernels."""
    for config, halves, levels in (
        (encodec.encodec_24khz(), (7_423_472, 7_423_345), 32),
        (encodec.encodec_32khz(), (28_438_432, 28_438_305), 4),
    ):
        shapes = jax.eval_shape(encodec.Encodec(config).init, jax.random.key(0), jnp.zeros((1, 640)))
        params = shapes["params"]
        assert tuple(sum(x.size for x in jax.tree.leaves(params[half])) for half in ("encoder", "decoder")) == halves
        codes = shapes["codebook"]["quantizer"]["layers"]["state"]["codes"]
        assert codes.shape == (levels, config.quantizer.num_codes, 128)
    at = [encodec.encodec_24khz().levels(bandwidth) for bandwidth in (1.5, 3.0, 6.0, 12.0, 24.0)]
    assert at == [2, 4, 8, 16, 32]
    assert encodec.encodec_32khz().levels(2.2) == 4


def test_what_does_not_fit_is_refused():
    model = encodec.Encodec(encodec.EncodecConfig.tiny())

    def run(x, **how):
        return jax.eval_shape(lambda: model.init(jax.random.key(0), x, method="encode", **how))

    for x, how, words in (
        (np.zeros((1, 16), np.float32), {"bandwidth": 5.0}, r"one of \(4.0, 8.0\) kbit/s, got 5.0"),
        (np.zeros((1, 16), np.float32), {"sample_rate": 16000}, "hears 8000 samples a second, got 16000"),
        (np.zeros((1, 16, 1), np.float32), {}, r"mono, \[B S\].*got \[1, 16, 1\]"),
        (np.zeros((1, 0), np.float32), {}, r"at least 1 sample, got \[1, 0\]"),
        (np.zeros((1, 16), np.int16), {}, "float in .* got int16; divide"),
    ):
        with pytest.raises(ValueError, match=words):
            run(x, **how)
    with pytest.raises(ValueError, match="2 frames are 16 samples, got length=17"):
        model.apply({}, np.zeros((1, 2, 2), np.int32), length=17, method="decode")
    with pytest.raises(ValueError, match=r"\[B T q\].*got \[1, 2\]"):
        model.apply({}, np.zeros((1, 2), np.int32), method="decode")


@pytest.mark.slow
def test_the_distance_of_spectra_is_zero_between_equals_and_counts_loudness_and_logarithms():
    bands = encodec.Objective().bands(8000)[0]
    x = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    far, near = (encodec.spectral_distance(jnp.asarray(a * x), x, bands) for a in (2.0, 1.0))
    np.testing.assert_allclose(near, 0.0, atol=2e-2)  # the root of what counts as silence
    np.testing.assert_allclose(far, 1.0 + np.log(2), rtol=2e-2)
    silent = jnp.zeros((1, 512))
    slopes = jax.grad(lambda x: encodec.spectral_distance(x, silent, bands))(silent)
    assert np.isfinite(slopes).all()


@pytest.mark.slow
def test_training_fits_sound_renews_codebooks_and_donates():
    model = encodec.Encodec(encodec.EncodecConfig.tiny())
    time = np.arange(400) / 8000
    pitches = np.array([[200.0], [350.0], [500.0], [800.0]])
    waveforms = (0.5 * np.sin(2 * np.pi * pitches * time)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), waveforms)
    variables = encodec.begun(model, variables, waveforms, jax.random.key(1))
    optimizer = optax.adam(3e-3)
    state = optimizer.init(variables["params"])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables, state, index):
        def value(params):
            batch, rng = {"waveforms": waveforms}, jax.random.fold_in(jax.random.key(2), index)
            return encodec.loss(model, {**variables, "params": params}, batch, rng, index)

        (_, aux), gradients = jax.value_and_grad(value, has_aux=True)(variables["params"])
        changes, state = optimizer.update(gradients, state)
        moved = {**variables, **aux.collections, "params": optax.apply_updates(variables["params"], changes)}
        return moved, state, aux.metrics

    seen = []
    for index in range(60):
        before = jax.tree.map(np.asarray, variables["codebook"])
        variables, state, metrics = step(variables, state, index)
        seen.append(float(metrics["mel"]))
    assert np.mean(seen[-10:]) < 0.7 * np.mean(seen[:5])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, variables["codebook"])), strict=True))
    ids = model.apply(variables, waveforms, method="encode")
    assert ids.shape == (4, 50, 2)
    again = model.apply(variables, ids, length=400, method="decode")
    np.testing.assert_allclose(again, model.apply(variables, waveforms).waveforms, atol=1e-4)


@pytest.mark.slow
def test_eight_devices_have_the_loss_and_codebooks_of_one():
    model = encodec.Encodec(encodec.EncodecConfig.tiny())
    waveforms = np.random.default_rng(1).normal(size=(8, 200)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), waveforms)
    run = jax.jit(lambda v, x: encodec.loss(model, v, {"waveforms": x}, jax.random.key(3), 0))
    value, aux = jax.device_get(run(variables, waveforms))
    mesh = meshes.MeshShape(data=8).build()
    with jax.set_mesh(mesh):
        spread = jax.device_put(waveforms, NamedSharding(mesh, PartitionSpec("data")))
        found, other = jax.device_get(run(variables, spread))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other.collections, aux.collections
    )
    assert abs(run(variables, waveforms[:1])[0] - value) > 1e-3


@pytest.mark.slow
def test_the_small_tokenizer_keeps_its_promises():
    c = encodec.EncodecConfig.small()
    shapes = jax.eval_shape(encodec.Encodec(c).init, jax.random.key(0), jnp.zeros((1, 12_000)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) < 1_000_000
    assert (c.frame_rate, c.quantizer.levels, c.quantizer.num_codes) == (25, 4, 256)
    assert [c.levels(one) for one in c.bandwidths] == [1, 2, 3, 4]
