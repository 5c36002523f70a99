"""MAR next to LTH14/mar's own code, live: random sizes, orders and noise.

git clone https://github.com/LTH14/mar
MAR_CHECKOUT=mar python -m pytest -m parity tests/models/test_mar_parity.py
"""

import os
import sys

import diffusion_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close, close_trees
from einops import rearrange

from mmjax.models import mar
from mmjax.weights import mar as mar_weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
pytest.importorskip("timm", reason="LTH14/mar needs timm, scipy and tqdm")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("MAR_CHECKOUT" not in os.environ, reason="MAR_CHECKOUT names no clone of LTH14/mar"),
]


@pytest.fixture
def original(monkeypatch):
    """Their models/mar.py; its packages are called `models` and `diffusion`."""
    monkeypatch.syspath_prepend(os.environ["MAR_CHECKOUT"])
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_: self)
    from models import mar as module

    yield module
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "diffusion")]:
        del sys.modules[name]


def network(original, c: mar.MARConfig, seed: int):
    model = original.MAR(
        img_size=c.side * 4, vae_stride=4, patch_size=c.patch_size, encoder_embed_dim=c.width, encoder_depth=c.depth,
        encoder_num_heads=c.num_heads, decoder_embed_dim=c.width, decoder_depth=c.depth,
        decoder_num_heads=c.num_heads, mlp_ratio=c.hidden / c.width, vae_embed_dim=c.channels,
        class_num=c.classes[0], buffer_size=c.buffer, attn_dropout=0.0, proj_dropout=0.0, label_drop_prob=0.0,
        diffloss_d=c.head_depth, diffloss_w=c.head_width, diffusion_batch_mul=c.repeats,
        norm_layer=original.partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            p.copy_(mean + (0.05 if "final_layer.linear.w" in name else 0.25) * torch.randn(p.shape))
    return model.train()


@pytest.mark.parametrize(("seed", "side", "patch", "heads"), [(0, 5, 1, 3), (1, 6, 2, 2)])
def test_loss_and_gradients(original, monkeypatch, seed, side, patch, heads):
    sizes = {"channels": 2 + seed, "width": 12, "depth": 1 + seed, "hidden": 24, "buffer": 2 + seed, "repeats": 2}
    sizes |= {"head_width": 10, "head_depth": 2 - seed, "classes": (4,), "dropout": 0.0, "drop": 0.0}
    c = mar.MARConfig(side, patch_size=patch, num_heads=heads, **sizes)
    theirs, ours = network(original, c, seed), mar.MAR(c)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, c.channels, side, side)).astype(np.float32)
    label, count = np.array([3, 1]), int(rng.integers(c.tokens - c.most_shown, c.tokens))
    t = rng.integers(0, 990, (c.repeats, 2, c.tokens))
    noise = rng.normal(size=(*t.shape, c.token_dim)).astype(np.float32)
    orders = np.stack([rng.permutation(c.tokens) for _ in range(2)])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(t).flatten())
    monkeypatch.setattr(torch, "randn_like", lambda _: torch.tensor(noise).flatten(0, 2))
    theirs.sample_orders = lambda bsz: torch.tensor(orders)
    theirs.mask_ratio_generator = type("Fixed", (), {"rvs": lambda self, _: [(count - 0.5) / c.tokens]})()
    states = []
    theirs.decoder_norm.register_forward_hook(lambda module, inputs, output: states.append(output.detach()))
    value = theirs(torch.tensor(images), torch.tensor(label))
    value.backward()

    flat = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    variables = mar_weights.load(ours, flat)
    draws = mar.Draws(orders, jnp.asarray(count), np.zeros(2, bool), t, noise)
    batch = {"images": rearrange(images, "b c h w -> b h w c"), "label": label}

    def loss(params):
        return mar.loss_of(ours, {"params": params}, batch, draws, jax.random.key(0))[0]

    out = jax.jit(ours.apply)(variables, **batch, draws=draws)
    z = states[0][:, c.buffer :] + theirs.diffusion_pos_embed_learned.detach()
    close("z", out.last_hidden_state, z, relative=1e-5)
    found, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"])
    close("loss", found, value.detach(), relative=1e-5)
    their_gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    their_gradients["fake_latent"] = np.zeros((1, c.width), np.float32)  # no class was dropped
    close_trees(gradients, diffusion_names.mar(their_gradients), relative=1e-4)
