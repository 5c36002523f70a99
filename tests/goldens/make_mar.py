"""Makes mar.npz with LTH14/mar's own code (commit fe470ac): a small MAR with random weights, what it says of masked
pictures, its loss with all gradients, and whole pictures drawn with recorded noise. Needs torch, timm, scipy, tqdm, and
the path of a checkout as the argument:

    python tests/goldens/make_mar.py CHECKOUT

    weights/NAME                 float16, which the float32 of the run equal
    inputs/{images,labels,orders,t,noise,drop}     images [B C h w], orders [B N], t [M B N], noise [M B N D]
    inputs/{x,time,z}, head      the head's own: [K D], [K], [K W] -> [K 2D]
    z                            [B N W] of the first COUNT tokens of each order masked, without dropping a label
    z_blind                      of all tokens masked
    loss, gradients/NAME         in training without dropout; the label of the second picture dropped
    drawn/CASE/{images,noise}    noise: S of the fillings, T + 1 of the diffusion (its start last), B, N (by place), D;
                                 betas are linear there
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
torch.Tensor.cuda = lambda self, *args, **kwargs: self

from diffusion import gaussian_diffusion  # noqa: E402
from models import diffloss, mar  # noqa: E402

BATCH, CHANNELS, SIDE, PATCH, WIDTH, MUL, STEPS, COUNT = 3, 3, 8, 2, 16, 3, 4, 13
TOKENS, DIM = (SIDE // PATCH) ** 2, CHANNELS * PATCH**2


def half(x: torch.Tensor) -> torch.Tensor:
    """Values that float16 holds too."""
    return x.half().float()


def network() -> mar.MAR:
    sizes = {"encoder_embed_dim": WIDTH, "encoder_depth": 2, "encoder_num_heads": 2}
    sizes |= {"decoder_embed_dim": WIDTH, "decoder_depth": 2, "decoder_num_heads": 2}
    model = mar.MAR(
        img_size=SIDE * 8, vae_stride=8, patch_size=PATCH, vae_embed_dim=CHANNELS, class_num=5, buffer_size=3,
        attn_dropout=0.0, proj_dropout=0.0, label_drop_prob=0.5, diffloss_d=2, diffloss_w=12, diffusion_batch_mul=MUL,
        num_sampling_steps=str(STEPS), norm_layer=mar.partial(torch.nn.LayerNorm, eps=1e-6), **sizes,
    )  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            # Noise of deviation 1, as the truth: where the first step is far off, its likelihood is rounding.
            p.copy_(half(mean + (0.05 if "final_layer.linear.w" in name else 0.25) * torch.randn(p.shape)))
    return model.eval()


def of_head(model: mar.MAR) -> dict:
    x, z, time = half(torch.randn(5, DIM)), half(torch.randn(5, WIDTH)), torch.tensor([0, 1, 333, 998, 999])
    return {"inputs/x": x, "inputs/z": z, "inputs/time": time, "head": model.diffloss.net(x, time, z)}


def forwards(model: mar.MAR, images: torch.Tensor, labels: torch.Tensor, orders: torch.Tensor) -> dict:
    x, classes = model.patchify(images), model.class_emb(labels)

    def look(count: int) -> torch.Tensor:
        mask = torch.zeros(BATCH, TOKENS).scatter(1, orders[:, :count], 1.0)
        return model.forward_mae_decoder(model.forward_mae_encoder(x, mask, classes), mask)

    return {"z": look(COUNT), "z_blind": look(TOKENS)}


def training(model: mar.MAR, images: torch.Tensor, labels: torch.Tensor, orders: torch.Tensor) -> dict:
    t = torch.randint(0, 1000, (MUL, BATCH, TOKENS))
    t[0, :, :2], t[1, :, :2] = 0, 990  # at 999 the bound of random weights would hide all others
    noise = half(torch.randn(MUL, BATCH, TOKENS, DIM))
    real = torch.rand, torch.randint, torch.randn_like
    torch.rand = lambda count: torch.tensor([0.9, 0.1, 0.7])[:count]
    torch.randint = lambda *args, **kwargs: t.flatten()
    torch.randn_like = lambda x: noise.reshape(-1, DIM)
    model.sample_orders = lambda bsz: orders
    model.mask_ratio_generator = type("Fixed", (), {"rvs": lambda self, count: [(COUNT - 0.2) / TOKENS]})()
    loss = model.train()(images, labels)
    loss.backward()
    model.eval()
    torch.rand, torch.randint, torch.randn_like = real
    gradients = {f"gradients/{name}": p.grad for name, p in model.named_parameters()}
    drop = torch.tensor([False, True, False])
    return {"inputs/t": t, "inputs/noise": noise, "inputs/drop": drop, "loss": loss.detach(), **gradients}


def drawn(model: mar.MAR, orders: torch.Tensor, fillings: int, **how) -> dict:
    """The original draws for the tokens of a filling one after the other; here each finds the noise of its place."""
    noise = half(torch.randn(fillings, STEPS + 1, BATCH, TOKENS, DIM))
    now = {"filling": -1, "left": 0}
    real, guided = model.forward_mae_decoder, how["cfg"] != 1.0

    def decode(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        mask = mask[:BATCH]
        now["filling"] += 1
        ratio = np.cos(np.pi / 2 * (now["filling"] + 1) / fillings)
        count = max(1, min(int(mask[0].sum()) - 1, int(np.floor(TOKENS * ratio))))
        after = torch.zeros(BATCH, TOKENS).scatter(1, orders[:, :count], 1.0)
        now["places"] = mask.bool() if now["filling"] == fillings - 1 else mask.bool() ^ after.bool()
        now["left"] = STEPS
        return real(x, torch.cat([mask, mask]) if guided else mask)

    def rows() -> torch.Tensor:
        found = noise[now["filling"], now["left"]][now["places"]]
        now["left"] -= 1
        return found

    drawing = torch.randn, gaussian_diffusion.th.randn_like
    torch.randn = lambda *shape: rows()
    gaussian_diffusion.th.randn_like = lambda x: torch.cat([found, found]) if len(found := rows()) < len(x) else found
    model.forward_mae_decoder, model.sample_orders = decode, lambda bsz: orders
    with torch.no_grad():
        images = model.sample_tokens(BATCH, num_iter=fillings, **how)
    model.forward_mae_decoder = real
    torch.randn, gaussian_diffusion.th.randn_like = drawing
    return {"images": images, "noise": noise.half()}


def main() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = network()
    images, labels = half(torch.randn(BATCH, CHANNELS, SIDE, SIDE)), torch.tensor([4, 0, 2])
    # With the cosine's last step, a random network's first token would be 2e4 times its error, and no noise be seen.
    model.diffloss.gen_diffusion = diffloss.create_diffusion(str(STEPS), noise_schedule="linear")
    orders = torch.stack([torch.randperm(TOKENS) for _ in range(BATCH)])
    out = {f"weights/{name}": p.detach().half() for name, p in model.named_parameters()}
    out |= {"inputs/images": images, "inputs/labels": labels, "inputs/orders": orders}
    with torch.no_grad():
        out |= of_head(model) | forwards(model, images, labels, orders)
    out |= training(model, images, labels, orders)
    cases = {
        "guided": drawn(model, orders, 5, cfg=2.5, cfg_schedule="linear", labels=labels, temperature=0.9),
        "constant": drawn(model, orders, 2, cfg=1.5, cfg_schedule="constant", labels=labels, temperature=1.0),
        "free": drawn(model, orders, 3, cfg=1.0, labels=None, temperature=0.95),
    }
    out |= {f"drawn/{case}/{name}": x for case, found in cases.items() for name, x in found.items()}
    return {name: np.asarray(value) for name, value in out.items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("mar.npz"), **main())
