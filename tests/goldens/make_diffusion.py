"""Makes diffusion.npz with facebookresearch/DiT's own code (commit ed81ce2), whose diffusion/ is improved-diffusion's:
tables, losses and walks of its noise, and a small DiT with random weights, its loss and gradients. Needs torch and
timm, and the path of a checkout as the argument:

    python tests/goldens/make_diffusion.py CHECKOUT

    tables/{linear,cosine}/{betas,kept,posterior_log_variance}     [1000]
    spaced/N/{timesteps,betas}                                     N steps of the cosine's
    weights/NAME      of the DiT, float16 (but for pos_embed), which the float32 of the run equal
    inputs/{x,labels,t,noise,dropped}                              x and noise [B C H W]
    outputs, guided   [B 2C H W]; guided: of x at t 500, 3.5 times, by the first three channels, as many as x has
    loss/{error,bound}[B], gradients/NAME of the mean of their sum
    ancestral, ddim   [2 C H W] out of walk/start, with walk/noise[i] at step i of 4 of the linear chain; ddim eta 0.6
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
import diffusion
import models
from diffusion import gaussian_diffusion

BATCH, CHANNELS, SIDE, STEPS = 4, 3, 8, 4


def half(x: torch.Tensor) -> torch.Tensor:
    """Values that float16 holds too."""
    return x.half().float()


def tables() -> dict[str, np.ndarray]:
    out = {}
    for ours, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
        whole = diffusion.create_diffusion("", noise_schedule=theirs)
        out[f"tables/{ours}/betas"] = gaussian_diffusion.get_named_beta_schedule(theirs, 1000)
        out[f"tables/{ours}/kept"] = whole.alphas_cumprod
        out[f"tables/{ours}/posterior_log_variance"] = whole.posterior_log_variance_clipped
    for count in (7, 10, 64, 100, 250):
        spaced = diffusion.create_diffusion(str(count), noise_schedule="squaredcos_cap_v2")
        out[f"spaced/{count}/timesteps"] = np.array(spaced.timestep_map)
        out[f"spaced/{count}/betas"] = spaced.betas
    return out


def network() -> models.DiT:
    model = models.DiT(SIDE, 2, CHANNELS, hidden_size=16, depth=3, num_heads=2, num_classes=3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "pos_embed":
                # Noise of deviation 1, as the truth: where the first step is far off, its likelihood is rounding.
                p.copy_(half((0.03 if name == "final_layer.linear.weight" else 0.3) * torch.randn(p.shape)))
    return model.eval()


def with_noise(noises: list[torch.Tensor]):
    """What the original draws at each step, last step first."""
    left = list(noises)
    gaussian_diffusion.th.randn_like = lambda x: left.pop()


def main() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model, out = network(), tables()
    exact = {name: p.detach() if name == "pos_embed" else p.detach().half() for name, p in model.named_parameters()}
    out |= {f"weights/{name}": p for name, p in exact.items()}
    x, noise = half(torch.randn(BATCH, CHANNELS, SIDE, SIDE)), half(torch.randn(BATCH, CHANNELS, SIDE, SIDE))
    labels, t = torch.tensor([2, 0, 1, 2]), torch.tensor([0, 1, 500, 999])
    dropped = torch.tensor([False, True, False, False])
    shown = torch.where(dropped, 3, labels)
    out |= {"inputs/x": x, "inputs/labels": labels, "inputs/t": t, "inputs/noise": noise, "inputs/dropped": dropped}
    with torch.no_grad():
        out["outputs"] = model(x, t, shown)
        both = model.forward_with_cfg(
            torch.cat([x, x]), torch.full((2 * BATCH,), 500), torch.cat([labels, torch.full((BATCH,), 3)]), 3.5
        )
        out["guided"] = both[:BATCH]
    terms = diffusion.create_diffusion("").training_losses(model, x, t, {"y": shown}, noise)
    terms["loss"].mean().backward()
    out |= {"loss/error": terms["mse"].detach(), "loss/bound": terms["vb"].detach()}
    out |= {f"gradients/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}

    start, steps = half(torch.randn(2, CHANNELS, SIDE, SIDE)), half(torch.randn(STEPS, 2, CHANNELS, SIDE, SIDE))
    out |= {"walk/start": start, "walk/noise": steps}
    spaced = diffusion.create_diffusion(str(STEPS))
    how = {"clip_denoised": False, "model_kwargs": {"y": labels[:2]}, "device": "cpu"}
    with_noise(steps)
    out["ancestral"] = spaced.p_sample_loop(model.forward, start.shape, start, **how)
    with_noise(steps)
    with torch.no_grad():
        out["ddim"] = spaced.ddim_sample_loop(model.forward, start.shape, start, eta=0.6, **how)
    return {name: np.asarray(value) for name, value in out.items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("diffusion.npz"), **main())
