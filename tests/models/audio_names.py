"""What the goldens of EnCodec and Mimi (make_hf_audio.py) hold, and what ours says of the same waveforms."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from clip_names import group
from closeness import close

from mmjax import weights
from mmjax.weights import engine

GOLDENS = Path(__file__).parents[1] / "goldens"


def load(name: str):
    """(model, variables, arrays) of a golden."""
    folder = GOLDENS / name
    return *weights.load_hf(folder), dict(np.load(folder / "outputs.npz"))


def close_forward(model, variables: dict, arrays: dict) -> None:
    """Latents, codes and sound of all levels; codes and sound of the first."""

    codes, first_codes = (arrays[name].transpose(0, 2, 1) for name in ("codes", "first_codes"))

    def both(model, waveforms, codes):  # in one pass of the decoder, which takes long to compile
        z = model.latents(waveforms)
        quantized = model.quantizer(z)
        sounds = model._sound(jnp.concatenate([quantized.latents, model.quantizer.embed(codes)]))
        return z, quantized.ids, jnp.split(sounds[:, : waveforms.shape[1]], 2)

    run = jax.jit(lambda variables, *args: model.apply(variables, *args, method=both))
    z, ids, (sound, first) = run(variables, arrays["waveforms"], first_codes)
    close("z", z, arrays["z"].transpose(0, 2, 1), relative=1e-5)
    np.testing.assert_array_equal(ids, codes)
    np.testing.assert_array_equal(ids[..., : first_codes.shape[-1]], first_codes)
    close("waveforms", sound, arrays["decoded"], relative=1e-5)
    close("waveforms of the first level", first, arrays["first_decoded"], relative=1e-5)


def training(model, variables: dict, waveforms: np.ndarray, weighting: np.ndarray):
    """(loss, gradients) of a weighted mean of the sound, plus the quantiser's loss. All levels count: no dropout."""

    @jax.jit
    @jax.value_and_grad
    def run(params):
        out = model.apply({**variables, "params": params}, jnp.asarray(waveforms))
        return jnp.mean(weighting * out.waveforms) + out.quantized.loss

    return run(variables["params"])


def close_training(model, variables: dict, arrays: dict, rules: list) -> None:
    """`rules` give our gradients their names; codebooks have none."""
    loss, gradients = training(model, variables, arrays["waveforms"], arrays["weights"])
    close("loss", loss, arrays["loss"], relative=1e-5)
    rules = [rule for rule in rules if not rule.theirs.startswith("quantizer.") or "_proj" in rule.theirs]
    ours, theirs = engine.save(rules, gradients, format="gradients"), group(arrays, "gradients")
    assert len(theirs) > 5
    for name in theirs:
        close(f"gradient {name}", ours[name], theirs[name], relative=1e-4)


def oracle():
    """make_hf_audio.py, which needs torch and transformers."""
    spec = importlib.util.spec_from_file_location("make_hf_audio", GOLDENS / "make_hf_audio.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
