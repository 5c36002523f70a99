"""VQGAN and the KL autoencoder in the names of their originals: read, written, and refused where they do not fit."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vqgan_names
from safetensors.numpy import load_file, save_file

from mmjax.models import kl, vqgan
from mmjax.nn.quantizers import FSQ, Codebook
from mmjax.weights import vqgan as weights

GOLDENS = Path(__file__).parents[1] / "goldens"
CODEC = vqgan.CodecConfig(**vqgan_names.SIZES, encoder_attention=(12,), decoder_attention=(12,))
VQ = vqgan.VQGAN(vqgan.VQGANConfig(CODEC, Codebook(11, 3), vqgan.Adversary(width=4, layers=2)))
KL = kl.AutoencoderKL(
    kl.KLConfig(dataclasses.replace(CODEC, decoder_attention=()), adversary=vqgan.Adversary(width=4, layers=2))
)
NORM = "loss.discriminator.main.3"


def tensors(stem: str, *, judge: bool = True, prefix: str = "") -> dict[str, np.ndarray]:
    """What a checkpoint of the golden's model holds, of one convolution of LPIPS too."""
    golden = vqgan_names.floats(np.load(GOLDENS / f"{stem}.npz"))
    out = {f"{prefix}{name.removeprefix('weights/')}": x for name, x in golden.items() if name.startswith("weights/")}
    if judge:
        own = {name: x for name, x in golden.items() if name.startswith("weights_loss/")}
        out |= {name.replace("weights_loss/", "loss."): x for name, x in own.items()}
        out |= {f"{NORM}.running_mean": np.zeros(8), f"{NORM}.num_batches_tracked": np.array(3)}
    return {name: np.ascontiguousarray(x) for name, x in out.items()}


@pytest.mark.parametrize(
    ("stem", "model", "judge", "prefix"),
    [
        ("vqgan", VQ, True, ""),
        pytest.param("kl", KL, True, "", marks=pytest.mark.slow),
        ("kl", KL, False, "model."),
        pytest.param("vqgan", VQ, False, "", marks=pytest.mark.slow),
    ],
)
def test_files_of_the_originals_are_read_and_written(tmp_path, stem, model, judge, prefix):
    file = tensors(stem, judge=judge, prefix=prefix)
    save_file(file, tmp_path / "theirs.safetensors")
    variables = weights.load(tmp_path / "theirs.safetensors", model)
    flat = {name.removeprefix(prefix): x for name, x in file.items()}
    parts = vqgan_names.VQ if stem == "vqgan" else vqgan_names.KL
    wanted = vqgan_names.tree(flat, vqgan_names.compvis_half, 2, parts)
    if judge:
        judged = {name.removeprefix("loss."): x for name, x in file.items() if name.startswith("loss.")}
        wanted["discriminator"] = vqgan_names.discriminator(judged, 2)
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)
    if judge:
        assert jax.tree.structure(weights.abstract(model)["params"]) == jax.tree.structure(wanted)
    weights.save(tmp_path / "ours.safetensors", model, variables)
    again = load_file(tmp_path / "ours.safetensors")
    kept = {name for name in flat if "perceptual" not in name and "running" not in name and "num_batches" not in name}
    assert set(again) == kept
    assert all((again[name] == flat[name]).all() for name in kept)


@pytest.mark.slow
def test_a_published_file_has_a_place_for_every_parameter():
    for model in (vqgan.VQGAN(vqgan.vqgan_f16()), kl.AutoencoderKL(kl.kl_16()), kl.AutoencoderKL(kl.kl_f8())):
        assert weights.engine.places(weights.rules(model, judge=True), flat_shapes(model), "CompVis")


def flat_shapes(model):
    return weights.engine.flatten(weights.abstract(model)["params"])


def test_what_does_not_fit_is_named(tmp_path):
    file = tensors("vqgan")
    file["encoder.down.0.attn.0.q.weight"] = file.pop("encoder.down.1.attn.0.q.weight")
    save_file(file, tmp_path / "theirs.safetensors")
    with pytest.raises(
        ValueError, match=r"missing encoder\.down\.1\.attn\.0\.q\.weight .*unknown encoder\.down\.0\.attn"
    ):
        weights.load(tmp_path / "theirs.safetensors", VQ)
    other = vqgan.VQGAN(dataclasses.replace(VQ.config, quantizer=FSQ((3, 3, 3))))
    with pytest.raises(ValueError, match="a Codebook, got FSQ"):
        weights.rules(other, judge=False)


def test_without_a_discriminator_pictures_are_still_encoded(tmp_path):
    save_file(tensors("kl", judge=False, prefix="model."), tmp_path / "kl16.safetensors")
    variables = weights.load(tmp_path / "kl16.safetensors", KL)
    z = jax.eval_shape(lambda: KL.apply(variables, jnp.zeros((1, 16, 24, 3)), method="encode"))
    assert z.shape == (1, 8, 12, 6)
