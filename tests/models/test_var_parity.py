"""VAR next to FoundationVision/VAR's own code, live: random sizes and weights.

git clone https://github.com/FoundationVision/VAR
VAR_CHECKOUT=VAR python -m pytest -m parity tests/models/test_var_parity.py
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import var_names
import vqgan_names
from closeness import close, close_trees
from einops import rearrange

from mmjax.models import var, var_tokenizer
from mmjax.models.vqgan import CodecConfig
from mmjax.nn.quantizers import Codebook
from mmjax.nn.sampling import Sampling
from mmjax.weights import var as var_weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
pytest.importorskip("huggingface_hub", reason="FoundationVision/VAR needs huggingface_hub")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("VAR_CHECKOUT" not in os.environ, reason="VAR_CHECKOUT names no clone of FoundationVision/VAR"),
]

# scales, levels of the codec, blocks, D, phis, depth, heads, head width, unit, shared
SIZES = [
    ((1, 2, 3, 4, 6), (1, 2), 1, 4, 4, 2, 3, 4, True, False),
    ((2, 3, 4), (1, 1, 2), 2, 3, 2, 1, 2, 5, False, True),
]


@pytest.fixture
def original(monkeypatch):
    """Their models/; its packages are called `models` and `dist`."""
    monkeypatch.syspath_prepend(os.environ["VAR_CHECKOUT"])
    import models

    normed = lambda channels: torch.nn.GroupNorm(2, channels, eps=1e-6)  # noqa: E731
    monkeypatch.setattr(sys.modules["models.basic_vae"], "Normalize", normed)
    monkeypatch.setattr(sys.modules["models.quant"].tdist, "get_world_size", lambda: 1)
    yield models
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "dist")]:
        del sys.modules[name]


def theirs_and_ours(original, seed: int, scales, levels, blocks, dim, phis):
    torch.manual_seed(seed)
    parts = sys.modules["models.basic_vae"]
    theirs = original.VQVAE(13, dim, 4, v_patch_nums=scales, share_quant_resi=phis, test_mode=False)
    sizes = {"ch": 4, "ch_mult": levels, "num_res_blocks": blocks, "z_channels": dim}
    theirs.encoder, theirs.decoder = parts.Encoder(**sizes), parts.Decoder(**sizes)
    vqgan_names.randomise(theirs)
    side, lowest = scales[-1] * 2 ** (len(levels) - 1), (scales[-1],)
    half = CodecConfig(side, 4, levels, blocks, dim, lowest, lowest, groups=2)
    codes = Codebook(13, dim)
    config = var_tokenizer.TokenizerConfig(
        var_tokenizer.Encoder(half), var_tokenizer.Decoder(half), codes, scales, phis
    )  # fmt: skip
    images = torch.rand(2, 3, side, side) * 2 - 1
    return theirs, var_tokenizer.Tokenizer(config), images


def named(model) -> dict:
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", SIZES)
def test_tokenizer(original, sizes):
    theirs, ours, images = theirs_and_ours(original, 0, *sizes[:5])
    made, _, quantising = theirs(images)
    total = torch.nn.functional.mse_loss(made, images) + quantising
    total.backward()
    with torch.no_grad():
        ids = theirs.img_to_idxBl(images)
        steps = torch.stack(theirs.idxBl_to_img(ids, same_shape=True))
    variables = var_weights.load_tokenizer(ours, named(theirs))
    inputs = rearrange(images.numpy(), "b c h w -> b h w c")

    def loss(params):
        return var_tokenizer.loss(ours, {"params": params}, {"images": inputs}, jax.random.key(0), 0)

    out = jax.jit(ours.apply)(variables, inputs)
    np.testing.assert_array_equal(out.quantized.ids, torch.cat(ids, 1))
    close("images", out.images, rearrange(made.detach().numpy(), "b c h w -> b h w c"), relative=1e-5)
    found = jax.jit(lambda v, ids: ours.apply(v, ids, method="progressive"))(variables, out.quantized.ids)
    close("steps", found, rearrange(steps.numpy(), "s b c h w -> s b h w c"), relative=1e-5)
    (value, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close("loss", value, total.detach(), relative=1e-5)
    slopes = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    close_trees(gradients, var_names.tokenizer(slopes, len(sizes[1])), relative=1e-4)


@pytest.mark.parametrize("sizes", SIZES)
def test_transformer(original, monkeypatch, sizes):
    *of_tokenizer, depth, heads, head_width, unit, shared = sizes
    vae, tokenizer, images = theirs_and_ours(original, 1, *of_tokenizer)
    vae.eval()
    scales, width = of_tokenizer[0], heads * head_width
    theirs = original.VAR(
        vae, num_classes=5, depth=depth, embed_dim=width, num_heads=heads, shared_aln=shared, attn_l2_norm=unit,
        patch_nums=scales, flash_if_available=False, fused_if_available=False, cond_drop_rate=0.0,
    ).eval()  # fmt: skip
    vqgan_names.randomise(theirs)
    with torch.no_grad():
        ids = vae.img_to_idxBl(images)
        inputs = vae.quantize.idxBl_to_var_input(ids)
    label, ids = torch.tensor([4, 2]), torch.cat(ids, 1)
    logits = theirs(label, inputs)
    value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    value.backward()
    drawn, real = [], sys.modules["models.var"].sample_with_top_k_top_p_

    def sample(logits, **how):
        drawn.append(real(logits, **how))
        return drawn[-1]

    monkeypatch.setattr(sys.modules["models.var"], "sample_with_top_k_top_p_", sample)
    theirs.autoregressive_infer_cfg(2, label, g_seed=0, cfg=2.5, top_k=1)

    ours = var.VAR(
        var.VARConfig(tokenizer.config, width, depth, heads, 4 * width, (5,), unit_length=unit, shared=shared)
    )  # fmt: skip
    variables = var_weights.load(ours, named(theirs)) | {"tokenizer": var_weights.load_tokenizer(tokenizer, named(vae))}
    ids, label = np.asarray(ids, np.int32), label.numpy()
    found = jax.jit(lambda v: var.inputs_of(tokenizer, v, ids))(variables["tokenizer"])
    close("inputs", found, inputs, relative=1e-5)

    def loss(params):
        logits = ours.apply({"params": params}, label, found)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, ids)), logits

    (mine, ours_logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close("logits", ours_logits, logits.detach(), relative=1e-5)
    close("loss", mine, value.detach(), relative=1e-5)
    slopes = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    close_trees(gradients, var_names.transformer(slopes), relative=1e-4)
    greedy = jax.jit(lambda v: var.sample(ours, v, jax.random.key(0), label, guidance=2.5, how=Sampling()))(variables)
    np.testing.assert_array_equal(greedy, torch.cat(drawn, 1)[..., 0])
    assert len(np.unique(greedy)) > 3

    saved = {name: torch.tensor(x) for name, x in var_weights.save(ours, variables).items()}
    theirs.load_state_dict(saved)
    vae.load_state_dict(
        {n: torch.tensor(x) for n, x in var_weights.save_tokenizer(tokenizer, variables["tokenizer"]).items()}
    )  # fmt: skip
    with torch.no_grad():
        np.testing.assert_array_equal(theirs(torch.tensor(label), inputs), logits.detach())
