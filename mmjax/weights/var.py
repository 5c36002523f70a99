"""VAR as FoundationVision/VAR keeps it, both ways: the tokenizer (vae_ch160v4096z32.pth) and the transformer
(var_d16.pth and its like, or the `ar-ckpt` files of a training, which hold it among other things)."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import var
from mmjax.models.var_tokenizer import SCALES_256, Decoder, Encoder, Tokenizer, TokenizerConfig
from mmjax.models.vqgan import CodecConfig
from mmjax.nn.quantizers import Codebook
from mmjax.weights import engine, files, vqgan
from mmjax.weights.engine import CONV, POINT, TRANSPOSE, Rule, Transform, linear

FORMAT, TOKENIZER_FORMAT = "FoundationVision/VAR's transformer", "FoundationVision/VAR's tokenizer"
IGNORED = (r"^lvl_1L$", r"^attn_bias_for_masking$", r"\.zero_k_bias$")  # buffers, as sizes and code say
TOKENIZER_IGNORED = (r"^quantize\.ema_vocab_hit_SV$",)  # how often a code was chosen in training
ROW = Transform(lambda x: x[0], lambda x: x[None])  # tables that they keep as [1 ...]
HEADS = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))
SIX = Transform(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, 6, -1))
QKV = ("query", "key", "value")

# --- the tokenizer


def _fused(rules: list[Rule]) -> list[Rule]:
    """Queries, keys and values of the codec as one convolution."""
    out = []
    for rule in rules:
        found = re.fullmatch(r"(.*)\.([qkv])\.(weight|bias)", rule.theirs)
        if found is None:
            out.append(rule)
        elif found[2] == "q":
            ours = tuple(rule.ours.replace("/query/", f"/{part}/") for part in QKV)
            out.append(Rule(ours, f"{found[1]}.qkv.{found[3]}", POINT if found[3] == "weight" else rule.transform))
    return out


def tokenizer_rules(config: TokenizerConfig) -> list[Rule]:
    encoder, decoder = config.encoder, config.decoder
    if not isinstance(encoder, Encoder) or not isinstance(decoder, Decoder):
        raise ValueError(
            f"{TOKENIZER_FORMAT} has var_tokenizer's Encoder and Decoder, got {type(encoder).__name__} and "
            f"{type(decoder).__name__}"
        )
    if not isinstance(config.quantizer, Codebook):
        raise ValueError(f"{TOKENIZER_FORMAT} has learned codes, a Codebook, got {type(config.quantizer).__name__}")
    out = [Rule("quantizer/codes", "quantize.embedding.weight")]
    out += _fused(vqgan.half(encoder.config, "encoder", "encoder/codec"))
    out += _fused(vqgan.half(decoder.config, "decoder", "decoder/codec"))
    convs = {"encoder/to_code": "quant_conv", "decoder/from_code": "post_quant_conv"}
    convs |= {"decoder/to_image": "decoder.conv_out"}
    convs |= {f"phi_{i}": f"quantize.quant_resi.qresi_ls.{i}" for i in range(config.phis)}
    for ours, theirs in convs.items():
        out += [Rule(f"{ours}/kernel", f"{theirs}.weight", CONV), Rule(f"{ours}/bias", f"{theirs}.bias")]
    return out


def load_var_tokenizer(path: str | Path, *, scales: tuple[int, ...] = SCALES_256) -> tuple[Tokenizer, dict]:
    """The tokenizer of a file (.pth, .safetensors) and its variables. scales: of any picture size; the weights of all
    are the same (var_tokenizer.SCALES_512 for 512 pixels)."""
    path = Path(path)
    tensors = _part(files.read(path), "vae_local")
    tokenizer = Tokenizer(_tokenizer_sizes(tensors, str(path), tuple(scales)))
    return tokenizer, load_tokenizer(tokenizer, tensors, source=str(path))


def load_tokenizer(model: Tokenizer, tensors: Mapping[str, np.ndarray], *, source: str = "tensors") -> dict:
    """The variables of `model`."""
    rules, target = tokenizer_rules(model.config), abstract_tokenizer(model)["params"]
    ignored = TOKENIZER_IGNORED
    return {"params": engine.load(rules, tensors, target, format=TOKENIZER_FORMAT, source=source, ignored=ignored)}


def save_tokenizer(model: Tokenizer, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name: what VQVAE.load_state_dict takes."""
    tensors = engine.save(tokenizer_rules(model.config), variables["params"], format=TOKENIZER_FORMAT)
    c = model.config
    return tensors | {"quantize.ema_vocab_hit_SV": np.zeros((len(c.scales), c.num_codes), np.float32)}


def abstract_tokenizer(model: Tokenizer) -> dict:
    """The variables' shapes."""
    c = model.config
    size = c.side * c.encoder.config.stride
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))


def _tokenizer_sizes(tensors: Mapping[str, np.ndarray], path: str, scales: tuple[int, ...]) -> TokenizerConfig:
    def shape(name: str) -> tuple[int, ...]:
        return _shape(tensors, name, path, TOKENIZER_FORMAT)

    (num_codes, dim), width = shape("quantize.embedding.weight"), shape("encoder.conv_in.weight")[0]
    levels, blocks = _count(tensors, r"encoder\.down\.(\d+)\."), _count(tensors, r"encoder\.down\.0\.block\.(\d+)\.")
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    lowest = (scales[-1],)
    half = CodecConfig(
        image_size=scales[-1] * 2 ** (levels - 1),
        width=width,
        multipliers=tuple(x // width for x in widths),
        blocks=blocks,
        latent=dim,
        encoder_attention=lowest,
        decoder_attention=lowest,
    )
    phis = _count(tensors, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    return TokenizerConfig(Encoder(half), Decoder(half), Codebook(num_codes, dim), scales, phis)


# --- the transformer

_ATTENTION, _THEIRS = "layers/attention", "blocks.{i}.attn"
RULES = [
    Rule("class_embed/embedding", "class_emb.weight"),
    Rule("start", "pos_start", ROW),
    Rule("pos_embed", "pos_1LC", ROW),
    Rule("level_embed", "lvl_embed.weight"),
    *linear("embed", "word_embed"),
    *linear("modulation", "shared_ada_lin.1"),
    Rule(tuple(f"{_ATTENTION}/{x}/kernel" for x in QKV), f"{_THEIRS}.mat_qkv.weight", TRANSPOSE),
    Rule(f"{_ATTENTION}/query/bias", f"{_THEIRS}.q_bias"),
    Rule(f"{_ATTENTION}/value/bias", f"{_THEIRS}.v_bias"),
    Rule(f"{_ATTENTION}/scale", f"{_THEIRS}.scale_mul_1H11", HEADS),
    *linear(f"{_ATTENTION}/out", f"{_THEIRS}.proj"),
    *linear("layers/mlp/up", "blocks.{i}.ffn.fc1"),
    *linear("layers/mlp/down", "blocks.{i}.ffn.fc2"),
    *linear("head_modulation", "head_nm.ada_lin.1"),
    *linear("head", "head"),
]
OWN, SHARED = (
    linear("layers/modulation", "blocks.{i}.ada_lin.1"),
    [Rule("layers/modulation", "blocks.{i}.ada_gss", SIX)],
)


def rules(config: var.VARConfig) -> list[Rule]:
    modulation = {rule.ours for rule in linear("modulation", "")}
    scale = () if config.unit_length else (f"{_ATTENTION}/scale",)
    absent = {*scale, *(() if config.shared else modulation)}
    return [rule for rule in RULES if rule.ours not in absent] + (SHARED if config.shared else OWN)


def abstract(model: var.VAR) -> dict:
    """The variables' shapes, without the tokenizer's."""
    label = jax.ShapeDtypeStruct((1, len(model.config.classes)), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), label)


def load(model: var.VAR, tensors: Mapping[str, np.ndarray], *, source: str = "tensors") -> dict:
    """The variables of `model`, without the tokenizer's."""
    target, known = abstract(model)["params"], rules(model.config)
    return {"params": engine.load(known, tensors, target, format=FORMAT, source=source, ignored=IGNORED)}


def save(model: var.VAR, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors and buffers, by name: what VAR.load_state_dict takes."""
    c = model.config
    levels = np.repeat(np.arange(len(c.tokenizer.sizes)), c.tokenizer.sizes)
    hidden = np.where(levels[:, None] >= levels, np.float32(0), np.float32(-np.inf))
    buffers = {f"blocks.{i}.attn.zero_k_bias": np.zeros(c.width, np.float32) for i in range(c.depth)}
    buffers |= {"lvl_1L": levels[None], "attn_bias_for_masking": hidden[None, None]}
    return engine.save(rules(c), variables["params"], format=FORMAT) | buffers


def load_var(
    path: str | Path, tokenizer: str | Path, *, scales: tuple[int, ...] | None = None
) -> tuple[var.VAR, dict]:  # fmt: skip
    """The transformer of a file (.pth, .safetensors) and its variables, the tokenizer's among them.

    tokenizer: its file. scales: None takes those that the file tells.
    """
    path = Path(path)
    tensors = _part(files.read(path), "var_wo_ddp")
    scales = _scales(tensors, str(path), scales)
    coder, frozen = load_var_tokenizer(tokenizer, scales=scales)
    model = var.VAR(_sizes(tensors, str(path), coder.config))
    return model, load(model, tensors, source=str(path)) | {"tokenizer": frozen}


def _scales(tensors: Mapping[str, np.ndarray], path: str, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    places, levels = (_shape(tensors, name, path, FORMAT) for name in ("pos_1LC", "lvl_embed.weight"))
    found = tuple(asked or ())
    if "lvl_1L" in tensors:
        found = tuple(math.isqrt(int(x)) for x in np.bincount(np.ravel(tensors["lvl_1L"])))
    elif asked is None:
        raise ValueError(f"{path} does not tell its scales, as lvl_1L is missing; give scales=(1, 2, 3, ...)")
    if asked is not None and tuple(asked) != found:
        raise ValueError(f"{path} was trained with scales={found}, got scales={tuple(asked)}; leave scales out")
    if sum(p * p for p in found) != places[1] or len(found) != levels[0]:
        raise ValueError(
            f"{path} has {places[1]} places in {levels[0]} scales, but scales={found} are "
            f"{sum(p * p for p in found)} in {len(found)}; give the scales that it was trained with"
        )
    return found


def _sizes(tensors: Mapping[str, np.ndarray], path: str, tokenizer: TokenizerConfig) -> var.VARConfig:
    def shape(name: str) -> tuple[int, ...]:
        return _shape(tensors, name, path, FORMAT)

    width, dim = shape("word_embed.weight")
    if (num_codes := shape("head.weight")[0]) != tokenizer.num_codes or dim != tokenizer.dim:
        raise ValueError(
            f"{path} speaks of {num_codes} codes of {dim} numbers, but the tokenizer has {tokenizer.num_codes} of "
            f"{tokenizer.dim}; give the tokenizer that it was trained with"
        )
    factors = "blocks.0.attn.scale_mul_1H11"
    return var.VARConfig(
        tokenizer,
        width=width,
        depth=(depth := _count(tensors, r"blocks\.(\d+)\.")),
        num_heads=shape(factors)[1] if factors in tensors else max(width // 64, 1),  # 64 in all that was published
        hidden=shape("blocks.0.ffn.fc1.weight")[0],
        classes=(shape("class_emb.weight")[0] - 1,),
        drop_path=0.1 * depth / 24,
        unit_length=factors in tensors,
        shared="shared_ada_lin.1.weight" in tensors,
    )


def _part(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Of a training's checkpoint, the network of this name; other files as they are."""
    prefix = f"trainer.{name}."
    inside = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
    return inside or tensors


def _shape(tensors: Mapping[str, np.ndarray], name: str, path: str, format: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{path} is no {format}: {name} is missing")
    return tensors[name].shape


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)
