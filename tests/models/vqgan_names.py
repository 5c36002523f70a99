"""The weights of VQGAN's and the KL autoencoder's originals as our tree, name by name (shares no code with
mmjax.weights): CompVis' names, and diffusers'. And what the tests of both have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from clip_names import close, group, norm

SIZES = {"image_size": 24, "width": 4, "multipliers": (1, 2), "blocks": 1, "latent": 6, "groups": 2}


def conv(flat: dict, name: str) -> dict:
    out = {"kernel": flat[f"{name}.weight"].transpose(2, 3, 1, 0)}
    return out | ({"bias": flat[f"{name}.bias"]} if f"{name}.bias" in flat else {})


def point(flat: dict, name: str) -> dict:
    """A convolution of one pixel, or a linear layer."""
    weight = flat[f"{name}.weight"]
    return {"kernel": weight.reshape(weight.shape[:2]).T, "bias": flat[f"{name}.bias"]}


def block(flat: dict, name: str, shortcut: str) -> dict:
    out = {f"norm{i}": norm(flat, f"{name}.norm{i}") for i in (1, 2)}
    out |= {f"conv{i}": conv(flat, f"{name}.conv{i}") for i in (1, 2)}
    return out | ({"shortcut": point(flat, f"{name}.{shortcut}")} if f"{name}.{shortcut}.weight" in flat else {})


def attention(flat: dict, name: str, names: tuple[str, ...]) -> dict:
    ours = ("query", "key", "value", "out")
    inner = {our: point(flat, f"{name}.{their}") for our, their in zip(ours, names[1:], strict=True)}
    return inner | {"norm": norm(flat, f"{name}.{names[0]}")}


def compvis_half(flat: dict, where: str, levels: int) -> dict:
    """where: encoder or decoder."""
    side, sample = ("down", "downsample") if where == "encoder" else ("up", "upsample")
    names = ("norm", "q", "k", "v", "proj_out")
    out = {
        "conv_in": conv(flat, f"{where}.conv_in"),
        "norm": norm(flat, f"{where}.norm_out"),
        "mid_block0": block(flat, f"{where}.mid.block_1", "nin_shortcut"),
        "mid_block1": block(flat, f"{where}.mid.block_2", "nin_shortcut"),
        "mid_attention": attention(flat, f"{where}.mid.attn_1", names),
    }
    for i in range(levels):
        for j in range(9):
            name = f"{where}.{side}.{i}"
            if f"{name}.block.{j}.conv1.weight" in flat:
                out[f"level{i}_block{j}"] = block(flat, f"{name}.block.{j}", "nin_shortcut")
            if f"{name}.attn.{j}.q.weight" in flat:
                out[f"level{i}_attention{j}"] = attention(flat, f"{name}.attn.{j}", names)
        if f"{where}.{side}.{i}.{sample}.conv.weight" in flat:
            out[f"conv_{side}{i}"] = conv(flat, f"{where}.{side}.{i}.{sample}.conv")
    return out


def diffusers_half(flat: dict, where: str, levels: int) -> dict:
    side, sample = ("down", "downsamplers") if where == "encoder" else ("up", "upsamplers")
    names = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    out = {
        "conv_in": conv(flat, f"{where}.conv_in"),
        "norm": norm(flat, f"{where}.conv_norm_out"),
        "mid_block0": block(flat, f"{where}.mid_block.resnets.0", "conv_shortcut"),
        "mid_block1": block(flat, f"{where}.mid_block.resnets.1", "conv_shortcut"),
        "mid_attention": attention(flat, f"{where}.mid_block.attentions.0", names),
    }
    for n in range(levels):
        i = n if where == "encoder" else levels - 1 - n  # theirs are in the order in which they run
        name = f"{where}.{side}_blocks.{n}"
        for j in range(9):
            if f"{name}.resnets.{j}.conv1.weight" in flat:
                out[f"level{i}_block{j}"] = block(flat, f"{name}.resnets.{j}", "conv_shortcut")
            if f"{name}.attentions.{j}.to_q.weight" in flat:
                out[f"level{i}_attention{j}"] = attention(flat, f"{name}.attentions.{j}", names)
        if f"{name}.{sample}.0.conv.weight" in flat:
            out[f"conv_{side}{i}"] = conv(flat, f"{name}.{sample}.0.conv")
    return out


def discriminator(flat: dict, layers: int) -> dict:
    """flat: of NLayerDiscriminator, under `discriminator.`."""
    where = "discriminator.main"
    out = {"conv0": conv(flat, f"{where}.0"), "out": conv(flat, f"{where}.{2 + 3 * layers}")}
    for i in range(1, layers + 1):
        out[f"conv{i}"] = conv(flat, f"{where}.{3 * i - 1}")
        out[f"norm{i}"] = norm(flat, f"{where}.{3 * i}")
    return out


def tree(flat: dict, half, levels: int, parts: dict[str, str]) -> dict:
    """half: one of the two above; parts: our name of a convolution of one pixel -> theirs."""
    encoder, decoder = (half(flat, where, levels) for where in ("encoder", "decoder"))
    out = {"encoder": {**encoder, "conv_out": conv(flat, "encoder.conv_out")}, "decoder": decoder}
    out["to_image"] = conv(flat, "decoder.conv_out")
    if "quantize.embedding.weight" in flat:
        out["quantizer"] = {"codes": flat["quantize.embedding.weight"]}
    return out | {our: point(flat, their) for our, their in parts.items()}


VQ = {"to_code": "quant_conv", "from_code": "post_quant_conv"}
KL = {"to_moments": "quant_conv", "from_latent": "post_quant_conv"}


def floats(golden) -> dict[str, np.ndarray]:
    return {name: x.astype(np.float32) if (x := golden[name]).dtype == np.float16 else x for name in golden}


def features(frozen: dict, images: jax.Array) -> list[jax.Array]:
    """What LPIPS reads in the golden: its constants, then convolutions of stride 2."""
    x, maps = (images - jnp.array([-0.030, -0.088, -0.188])) / jnp.array([0.458, 0.448, 0.450]), []
    for layer in frozen["convs"]:
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["bias"])
        maps.append(x)
    return maps


def perceptual(golden: dict) -> dict:
    """The frozen network of a golden's LPIPS."""
    flat = group(golden, "weights_loss")
    convs = [conv(flat, f"perceptual_loss.net.convs.{i}") for i in range(2)]
    channels = [flat[f"perceptual_loss.lin{i}.model.1.weight"].ravel() for i in range(2)]
    return {"convs": convs, "channels": channels}


def close_players(golden: dict, step: str, value: jax.Array, metrics: dict, weight: float) -> None:
    wanted = group(golden, step)
    close(f"loss {step}", value, wanted["total"] + wanted["told"], relative=1e-5)
    close(f"loss {step} distortion", metrics["reconstruction"], wanted["nll_loss"], relative=1e-5)
    close(f"loss {step} generator", metrics["generator"], wanted["g_loss"], relative=1e-4)
    close(f"loss {step} weight", weight * metrics["adaptive_weight"], wanted["d_weight"], relative=1e-4)
    for name in ("logits_real", "logits_fake"):
        close(f"{name} {step}", metrics[name], wanted[name], relative=1e-4)


@functools.cache
def differentiated(model, loss):
    """(variables, images, step) -> ((loss, aux), gradients), compiled once."""

    def run(variables, images, step):
        def value(params):
            total, aux = loss(model, {**variables, "params": params}, {"images": images}, jax.random.key(0), step)
            return total, aux._replace(collections=dict(aux.collections))

        return jax.value_and_grad(value, has_aux=True)(variables["params"])

    return jax.jit(run)


def randomise(model) -> None:
    """A torch module's parameters, norms and biases too."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = 0.3 if weight.ndim < 2 else weight[0].numel() ** -0.5
            weight.copy_(mean + spread * torch.randn(weight.shape))
