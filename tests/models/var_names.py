"""The weights of FoundationVision/VAR as our trees, name by name (shares no code with mmjax.weights), and the sizes of
the golden's models."""

import re

import numpy as np
import vqgan_names
from clip_names import linear, stack

from mmjax.models import var, var_tokenizer
from mmjax.models.var_tokenizer import Decoder, Encoder
from mmjax.models.vqgan import CodecConfig
from mmjax.nn.quantizers import Codebook

HALF = CodecConfig(10, 4, (1, 2), 1, 3, encoder_attention=(5,), decoder_attention=(5,), groups=2)
TOKENIZER = var_tokenizer.TokenizerConfig(Encoder(HALF), Decoder(HALF), Codebook(11, 3), (1, 2, 3, 5))
CASES = {
    case: var.VARConfig(TOKENIZER, 8, 2, 2, 32, (4,), drop_path=0.0, unit_length=case == "unit", shared=case != "unit")
    for case in ("unit", "shared")
}


def tokenizer(flat: dict, levels: int = 2) -> dict:
    flat = dict(flat)
    for name in [name for name in flat if ".qkv." in name]:
        for part, x in zip("qkv", np.split(flat.pop(name), 3), strict=True):
            flat[name.replace("qkv", part)] = x
    halves = {where: {"codec": vqgan_names.compvis_half(flat, where, levels)} for where in ("encoder", "decoder")}
    halves["encoder"]["codec"]["conv_out"] = vqgan_names.conv(flat, "encoder.conv_out")
    halves["encoder"]["to_code"] = vqgan_names.conv(flat, "quant_conv")
    halves["decoder"]["from_code"] = vqgan_names.conv(flat, "post_quant_conv")
    halves["decoder"]["to_image"] = vqgan_names.conv(flat, "decoder.conv_out")
    return {**halves, **quantiser(flat)}


def quantiser(flat: dict) -> dict:
    """Codes and phi alone."""
    count = 1 + max(int(found[1]) for name in flat if (found := re.match(r".*qresi_ls\.(\d+)\.", name)))
    phis = {f"phi_{i}": vqgan_names.conv(flat, f"quantize.quant_resi.qresi_ls.{i}") for i in range(count)}
    return {**phis, "quantizer": {"codes": flat["quantize.embedding.weight"]}}


def _layer(flat: dict, name: str) -> dict:
    query, key, value = np.split(flat[f"{name}.attn.mat_qkv.weight"], 3)
    attention = {
        "query": {"kernel": query.T, "bias": flat[f"{name}.attn.q_bias"]},
        "key": {"kernel": key.T},
        "value": {"kernel": value.T, "bias": flat[f"{name}.attn.v_bias"]},
        "out": linear(flat, f"{name}.attn.proj"),
    }
    if f"{name}.attn.scale_mul_1H11" in flat:
        attention["scale"] = flat[f"{name}.attn.scale_mul_1H11"].ravel()
    shared = f"{name}.ada_gss" in flat
    return {
        "attention": attention,
        "mlp": {"up": linear(flat, f"{name}.ffn.fc1"), "down": linear(flat, f"{name}.ffn.fc2")},
        "modulation": flat[f"{name}.ada_gss"].ravel() if shared else linear(flat, f"{name}.ada_lin.1"),
    }


def transformer(flat: dict) -> dict:
    shared = {"modulation": linear(flat, "shared_ada_lin.1")} if "shared_ada_lin.1.weight" in flat else {}
    return shared | {
        "class_embed": {"embedding": flat["class_emb.weight"]},
        "start": flat["pos_start"][0],
        "pos_embed": flat["pos_1LC"][0],
        "level_embed": flat["lvl_embed.weight"],
        "embed": linear(flat, "word_embed"),
        "layers": stack(flat, "blocks", _layer),
        "head_modulation": linear(flat, "head_nm.ada_lin.1"),
        "head": linear(flat, "head"),
    }
