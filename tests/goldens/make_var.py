"""Makes var.npz with FoundationVision/VAR's own code (commit 78b9539): its two resizings, and which phi each scale has;
a small tokenizer with random weights, its codes, pictures, loss and all gradients; two small transformers on its codes,
with and without queries of length 1 and shared modulation: logits, loss, gradients, greedy samples; what its top-k and
top-p leave. Channels are few, so norms have 2 groups in place of 32. Needs torch, huggingface_hub and the path of a
checkout as the argument:

    python tests/goldens/make_var.py CHECKOUT

    resize/{area,cubic}_P/{x,y}              between 16 x 16 and P x P
    phi                                      [6 15 16], of PHIS and 2 to 16 scales which phi each has, -1 behind
    tokenizer/{weights,gradients}/NAME       weights float16, which the float32 of the run equal
    tokenizer/{images,f,ids,fhat,made,steps,quantising,loss}     steps: the picture after each scale, clamped
    tokenizer/pulls/NAME                     gradients of the loss of codes alone: of f, codes and phi
    inputs                                   [B L-1 D] of the ids, teacher forcing
    CASE/{weights,gradients}/NAME, CASE/{logits,loss,ids,image}  the label of the second picture dropped; ids greedy
    filter/N/{logits,left}, filter/N/how     top_k, top_p
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, sys.argv[1])

from models import basic_vae, helpers, quant, var, vqvae

BATCH, CODES, DIM, SCALES, WIDTH, LABELS = 3, 11, 3, (1, 2, 3, 5), 8, 4
PHIS = (2, 3, 4, 5, 6, 8)
CASES = {"unit": (True, False), "shared": (False, True)}  # attn_l2_norm, shared_aln


def half(x: torch.Tensor) -> torch.Tensor:
    """Values that float16 holds too."""
    return x.half().float()


def resizings() -> dict:
    out = {}
    for p in (2, 3, 6, 10, 13):
        x, codes = torch.randn(1, 1, 16, 16), torch.randn(1, 1, p, p)
        out |= {f"resize/area_{p}/x": x, f"resize/area_{p}/y": F.interpolate(x, size=(p, p), mode="area")}
        wide = F.interpolate(codes, size=(16, 16), mode="bicubic")
        out |= {f"resize/cubic_{p}/x": codes, f"resize/cubic_{p}/y": wide}
    return out


def phis() -> dict:
    found = np.full((len(PHIS), 15, 16), -1)
    for (n, count), scales, k in itertools.product(enumerate(PHIS), range(2, 17), range(16)):
        if k < scales:
            table = quant.PhiPartiallyShared(torch.nn.ModuleList([torch.nn.Identity() for _ in range(count)]))
            chosen = table[k / (scales - 1)]
            found[n, scales - 2, k] = next(i for i, one in enumerate(table.qresi_ls) if one is chosen)
    return {"phi": found}


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "norm" in name and p.ndim == 1 and name.endswith("weight")
            spread = 0.4 if "quantize.embedding" in name else 0.3 if p.ndim < 2 else p[0].numel() ** -0.5
            if name.split(".")[0] in ("class_emb", "pos_start", "pos_1LC", "lvl_embed") or "ada_gss" in name:
                spread = 0.5
            p.copy_(half((1.0 if norm else 0.0) + spread * torch.randn(p.shape)))
            if "scale_mul" in name:
                p.copy_(half(p + 1.4))
                p[0, 0] = 5.0  # beyond the bound


def tokenizer() -> tuple[vqvae.VQVAE, dict]:
    basic_vae.Normalize = lambda channels: torch.nn.GroupNorm(2, channels, eps=1e-6)
    quant.tdist.get_world_size = lambda: 1
    model = vqvae.VQVAE(CODES, DIM, 4, v_patch_nums=SCALES, test_mode=False)
    sizes = {"ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": DIM}
    model.encoder, model.decoder = basic_vae.Encoder(**sizes), basic_vae.Decoder(**sizes)
    randomise(model)
    images = half(torch.rand(BATCH, 3, 10, 10) * 2 - 1)
    made, _, quantising = model(images)
    loss = F.mse_loss(made, images) + quantising
    loss.backward()
    pulled = {name: p for name, p in model.named_parameters() if name.startswith("quantize.")}
    f = model.quant_conv(model.encoder(images)).detach().requires_grad_()
    pulls = torch.autograd.grad(model.quantize(f)[2], [f, *pulled.values()])
    model.eval()
    with torch.no_grad():
        f = model.quant_conv(model.encoder(images))
        ids = model.img_to_idxBl(images)
        fhat = model.quantize.f_to_idxBl_or_fhat(f, to_fhat=True)[-1]
        steps = torch.stack(model.idxBl_to_img(ids, same_shape=True))
        inputs = model.quantize.idxBl_to_var_input(ids)
    out = {f"weights/{name}": p.detach().half() for name, p in model.named_parameters()}
    out |= {f"gradients/{name}": p.grad for name, p in model.named_parameters()}
    out |= {f"pulls/{name}": x for name, x in zip(["f", *pulled], pulls, strict=True)}
    out |= {"images": images, "f": f, "ids": torch.cat(ids, 1), "fhat": fhat, "made": made.detach(), "steps": steps}
    out |= {"quantising": quantising.detach(), "loss": loss.detach()}
    return model, {f"tokenizer/{name}": x for name, x in out.items()} | {"inputs": inputs}


def transformer(vae: vqvae.VQVAE, inputs: torch.Tensor, ids: torch.Tensor, unit: bool, shared: bool) -> dict:
    model = var.VAR(
        vae, num_classes=LABELS, depth=2, embed_dim=WIDTH, num_heads=2, shared_aln=shared, attn_l2_norm=unit,
        patch_nums=SCALES, flash_if_available=False, fused_if_available=False,
    ).eval()  # fmt: skip
    randomise(model)
    labels, real = torch.tensor([3, 0, 1]), (torch.rand, var.sample_with_top_k_top_p_)
    torch.rand = lambda count, device=None: torch.tensor([0.9, 0.05, 0.9])
    logits = model(labels, inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    loss.backward()
    drawn = []

    def sample(logits: torch.Tensor, **how) -> torch.Tensor:
        drawn.append(real[1](logits, **how))
        return drawn[-1]

    torch.rand, var.sample_with_top_k_top_p_ = real[0], sample
    image = model.autoregressive_infer_cfg(BATCH, labels, g_seed=0, cfg=1.5, top_k=1)
    var.sample_with_top_k_top_p_ = real[1]
    out = {f"weights/{name}": p.detach().half() for name, p in model.named_parameters()}
    out |= {f"gradients/{name}": p.grad for name, p in model.named_parameters()}
    return out | {"logits": logits.detach(), "loss": loss.detach(), "ids": torch.cat(drawn, 1)[..., 0], "image": image}


def filters() -> dict:
    out = {}
    for n, (top_k, top_p) in enumerate([(5, 0.7), (0, 0.9), (4, 0.0)]):
        logits = 2 * torch.randn(2, 3, CODES)
        left = logits.clone()
        helpers.sample_with_top_k_top_p_(left, top_k=top_k, top_p=top_p)
        out |= {f"filter/{n}/logits": logits, f"filter/{n}/left": left, f"filter/{n}/how": np.array([top_k, top_p])}
    return out


def main() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    vae, out = tokenizer()
    for case, how in CASES.items():
        found = transformer(vae, out["inputs"], out["tokenizer/ids"], *how)
        out |= {f"{case}/{name}": x for name, x in found.items()}
    out |= resizings() | phis() | filters()
    return {name: np.asarray(value) for name, value in out.items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("var.npz"), **main())
