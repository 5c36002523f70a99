"""VQGAN and the KL autoencoder in the names of CompVis (taming-transformers, latent-diffusion; LTH14/mar), both ways.

Files of theirs tell no sizes beside the tensors' own, so a model is asked for. The discriminator comes along where the
file holds it; running averages of its norms, and networks of the perceptual loss, do not.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models import kl, vqgan
from mmjax.nn.quantizers import Codebook
from mmjax.weights import engine, files
from mmjax.weights.engine import CONV, POINT, Rule, norm

FORMAT = "CompVis' autoencoders"
IGNORED = (r"^loss\.(?!discriminator\.)", r"\.(running_mean|running_var|num_batches_tracked)$", r"^model_ema\.")
JUDGE, JUDGE_THEIRS = "discriminator", "loss.discriminator.main"
POINTS = {  # by the class of the model: our name -> theirs, of convolutions of one pixel around the codec
    vqgan.VQGAN: {"to_code": "quant_conv", "from_code": "post_quant_conv"},
    kl.AutoencoderKL: {"to_moments": "quant_conv", "from_latent": "post_quant_conv"},
}


def rules(model: nn.Module, *, judge: bool) -> list[Rule]:
    """judge: with the discriminator."""
    c = model.config
    out = [rule for name in ("encoder", "decoder") for rule in half(c.codec, name, name)]
    out += _conv("to_image", "decoder.conv_out")
    out += [rule for our, their in POINTS[type(model)].items() for rule in _conv(our, their, POINT)]
    if isinstance(model, vqgan.VQGAN):
        if not isinstance(c.quantizer, Codebook):
            raise ValueError(f"{FORMAT} have learned codes, a Codebook, got {type(c.quantizer).__name__}")
        out.append(Rule("quantizer/codes", "quantize.embedding.weight"))
    return out + (_judge(c.adversary.layers) if judge else [])


def _conv(ours: str, theirs: str, transform: engine.Transform = CONV) -> list[Rule]:
    return [Rule(f"{ours}/kernel", f"{theirs}.weight", transform), Rule(f"{ours}/bias", f"{theirs}.bias")]


def half(c: vqgan.CodecConfig, theirs: str, ours: str) -> list[Rule]:
    """theirs: encoder or decoder; ours: where it lies in our tree."""
    encodes = theirs == "encoder"
    side, sample = ("down", "downsample") if encodes else ("up", "upsample")
    blocks, looking = (c.blocks, c.encoder_attention) if encodes else (c.blocks + 1, c.decoder_attention)
    lowest = c.levels[-1][1]
    out = _conv(f"{ours}/conv_in", f"{theirs}.conv_in") + norm(f"{ours}/norm", f"{theirs}.norm_out")
    out += _conv(f"{ours}/conv_out", f"{theirs}.conv_out") if encodes else []
    for i in (0, 1):
        out += _block(f"{ours}/mid_block{i}", f"{theirs}.mid.block_{i + 1}", lowest, lowest)
    out += _attention(f"{ours}/mid_attention", f"{theirs}.mid.attn_1")
    before = c.width if encodes else lowest
    for i, (grid, width) in enumerate(c.levels) if encodes else reversed(list(enumerate(c.levels))):
        for j in range(blocks):
            out += _block(f"{ours}/level{i}_block{j}", f"{theirs}.{side}.{i}.block.{j}", before, width)
            if grid in looking:
                out += _attention(f"{ours}/level{i}_attention{j}", f"{theirs}.{side}.{i}.attn.{j}")
            before = width
        if i + 1 < len(c.levels) if encodes else i:
            out += _conv(f"{ours}/conv_{side}{i}", f"{theirs}.{side}.{i}.{sample}.conv")
    return out


def _block(ours: str, theirs: str, before: int, after: int) -> list[Rule]:
    out = [rule for i in (1, 2) for rule in norm(f"{ours}/norm{i}", f"{theirs}.norm{i}")]
    out += [rule for i in (1, 2) for rule in _conv(f"{ours}/conv{i}", f"{theirs}.conv{i}")]
    return out + (_conv(f"{ours}/shortcut", f"{theirs}.nin_shortcut", POINT) if before != after else [])


def _attention(ours: str, theirs: str) -> list[Rule]:
    names = {"query": "q", "key": "k", "value": "v", "out": "proj_out"}
    inner = [rule for our, their in names.items() for rule in _conv(f"{ours}/{our}", f"{theirs}.{their}", POINT)]
    return [*norm(f"{ours}/norm", f"{theirs}.norm"), *inner]


def _judge(layers: int) -> list[Rule]:
    out = _conv(f"{JUDGE}/conv0", f"{JUDGE_THEIRS}.0") + _conv(f"{JUDGE}/out", f"{JUDGE_THEIRS}.{3 * layers + 2}")
    for i in range(1, layers + 1):
        out.append(Rule(f"{JUDGE}/conv{i}/kernel", f"{JUDGE_THEIRS}.{3 * i - 1}.weight", CONV))
        out += norm(f"{JUDGE}/norm{i}", f"{JUDGE_THEIRS}.{3 * i}")
    return out


def abstract(model: nn.Module) -> dict:
    """The variables' shapes."""
    side = model.config.codec.image_size
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def load(path: str | Path, model: nn.Module) -> dict:
    """The variables of `model`, a VQGAN or an AutoencoderKL, from a file (.ckpt, .pth, .safetensors).

    Without a discriminator in the file, the variables have none either: enough to encode and decode, not to train.
    """
    path = Path(path)
    # mar's kl16.ckpt holds its tensors under one more name.
    tensors = {name.removeprefix("model."): x for name, x in files.read(path).items()}
    judge = any(name.startswith(JUDGE_THEIRS) for name in tensors)
    target = {name: tree for name, tree in abstract(model)["params"].items() if judge or name != JUDGE}
    return {
        "params": engine.load(
            rules(model, judge=judge), tensors, target, format=FORMAT, source=path, ignored=IGNORED
        )
    }  # fmt: skip


def save(path: str | Path, model: nn.Module, variables: Mapping) -> None:
    """Writes their tensors, by name, as safetensors."""
    params = variables["params"]
    files.write(Path(path), engine.save(rules(model, judge=JUDGE in params), params, format=FORMAT))
