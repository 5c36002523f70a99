"""EnCodec as transformers keeps it (EncodecModel), both ways: the models of 24 and 32 kHz, mono and with weights
normalised. That of 48 kHz, stereo in chunks, is refused.

A normalised kernel is kept as a direction and a length, older files calling them weight_v and weight_g; here it is
their product. Written, the direction is the kernel itself, so that their product is it again, but for rounding.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import encodec
from mmjax.nn.quantizers import MovingCodebook
from mmjax.nn.residual import ResidualCodebook
from mmjax.nn.seanet import SEANetConfig
from mmjax.weights import seanet
from mmjax.weights.engine import Rule
from mmjax.weights.fields import Fields

MODEL = encodec.Encodec
FORMAT = "transformers' EncodecModel"
IGNORED = (r"\.codebook\.inited$",)
COLLECTIONS = ("codebook",)
LENGTH, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
STATE = {"codes": "embed", "count": "cluster_size", "total": "embed_avg"}
CODES = "quantizer.layers.{i}.codebook"


def RULES(model: encodec.Encodec) -> list[Rule]:
    ours = "codebook/quantizer/layers/state"
    codes = [Rule(f"{ours}/{our}", f"{CODES}.{their}") for our, their in STATE.items()]
    return [*seanet.encoder(model.config.codec), *seanet.decoder(model.config.codec), *codes]


def renamed(model: encodec.Encodec, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With kernels as products."""
    names = {re.sub(r"\.weight_v$", DIRECTION, re.sub(r"\.weight_g$", LENGTH, name)): name for name in tensors}
    out = {}
    for name, original in names.items():
        kernel = name.removesuffix(DIRECTION)
        if name.endswith(DIRECTION) and f"{kernel}{LENGTH}" in names:
            direction = np.asarray(tensors[original], np.float32)
            length = np.asarray(tensors[names[f"{kernel}{LENGTH}"]], np.float32)
            out[f"{kernel}.weight"] = direction * (length / _length(direction))
        elif not (name.endswith(LENGTH) and f"{name.removesuffix(LENGTH)}{DIRECTION}" in names):
            out[name] = tensors[original]
    return out


def written(model: encodec.Encodec, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse: kernels apart again, and the marks of codebooks that have begun."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(".conv.weight"):
            kernel = name.removesuffix(".weight")
            out |= {f"{kernel}{LENGTH}": _length(tensor).astype(tensor.dtype), f"{kernel}{DIRECTION}": tensor}
        else:
            out[name] = tensor
    levels = model.config.quantizer.levels
    return out | {f"{CODES}.inited".replace("{i}", str(i)): np.ones(1, np.float32) for i in range(levels)}


def _length(kernel: np.ndarray) -> np.ndarray:
    """Of each slice along the first axis, whichever that is: [F ...] -> [F 1 1]."""
    return np.sqrt(np.sum(np.square(kernel, dtype=np.float32), axis=(1, 2), keepdims=True))


def codec(config: Fields, *, ratios: tuple[int, ...], last_kernel: int, shortcut: bool, padding: str) -> SEANetConfig:
    """What EncodecConfig and MimiConfig share, with what their defaults do not."""
    for name, only in (("audio_channels", 1), ("trim_right_ratio", 1.0)):
        config.expect(name, only)
    return SEANetConfig(
        ratios=tuple(config.values.get("upsampling_ratios") or ratios),
        width=config.get("num_filters", int, 32),
        dim=config.get("hidden_size", int, 128),
        blocks=config.get("num_residual_layers", int, 1),
        kernel=config.get("kernel_size", int, 7),
        last_kernel=config.get("last_kernel_size", int, last_kernel),
        residual_kernel=config.get("residual_kernel_size", int, 3),
        dilation=config.get("dilation_growth_rate", int, 2),
        compress=config.get("compress", int, 2),
        shortcut=config.get("use_conv_shortcut", bool, shortcut),
        lstm=config.get("num_lstm_layers", int, 2),
        causal=config.get("use_causal_conv", bool, True),
        padding=config.one_of("pad_mode", seanet.PADDING, padding),
    )


def from_config(config: Fields) -> encodec.Encodec:
    """config.json; an absent field has the value that transformers 5 gives it."""
    for name, only in (("norm_type", "weight_norm"), ("normalize", False), ("chunk_length_s", None)):
        config.expect(name, only)
    c = codec(config, ratios=(8, 5, 4, 2), last_kernel=7, shortcut=True, padding="reflect")
    if config.values.get("codebook_dim") is not None:
        config.expect("codebook_dim", c.dim)
    rate, codes = config.get("sampling_rate", int, 24_000), config.get("codebook_size", int, 1024)
    bandwidths = tuple(config.values.get("target_bandwidths") or (1.5, 3.0, 6.0, 12.0, 24.0))
    bits = -(-rate // c.hop) * (codes - 1).bit_length()
    levels = ResidualCodebook(
        MovingCodebook(codes, c.dim, 1.0, threshold=2.0), int(1000 * bandwidths[-1] // bits), True
    )
    return encodec.Encodec(encodec.EncodecConfig(rate, c, levels, bandwidths))


def codec_fields(c: SEANetConfig) -> dict:
    return {
        "audio_channels": 1,
        "upsampling_ratios": list(c.ratios),
        "num_filters": c.width,
        "hidden_size": c.dim,
        "num_residual_layers": c.blocks,
        "kernel_size": c.kernel,
        "last_kernel_size": c.last_kernel,
        "residual_kernel_size": c.residual_kernel,
        "dilation_growth_rate": c.dilation,
        "compress": c.compress,
        "use_conv_shortcut": c.shortcut,
        "use_causal_conv": c.causal,
        "pad_mode": next(theirs for theirs, ours in seanet.PADDING.items() if ours == c.padding),
        "trim_right_ratio": 1.0,
    }


def to_config(model: encodec.Encodec) -> dict:
    c = model.config
    moving(c.quantizer, FORMAT)
    if not c.codec.lstm:
        raise ValueError(f"{FORMAT} has an LSTM, got codec.lstm=0")
    made: dict[str, Any] = {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "sampling_rate": c.sample_rate,
        "target_bandwidths": list(c.bandwidths),
        "normalize": False,
        "norm_type": "weight_norm",
        "num_lstm_layers": c.codec.lstm,
        "codebook_size": c.quantizer.num_codes,
        "codebook_dim": c.codec.dim,
        **codec_fields(c.codec),
    }
    if from_config(Fields(made, FORMAT)).config.quantizer.levels != c.quantizer.levels:
        raise ValueError(
            f"{FORMAT} has as many levels as its largest bandwidth pays for; {c.bandwidths[-1]} kbit/s do not make "
            f"{c.quantizer.levels} levels"
        )
    return made


def moving(quantizer: ResidualCodebook, format: str) -> None:
    """Refuses codes that the format has no place for."""
    if not isinstance(quantizer, ResidualCodebook) or not isinstance(quantizer.layers, MovingCodebook):
        raise ValueError(
            f"{format} has levels of moving averages, a ResidualCodebook of MovingCodebook, got {quantizer}"
        )


def abstract(model: encodec.Encodec) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, model.config.codec.hop), jnp.float32))
