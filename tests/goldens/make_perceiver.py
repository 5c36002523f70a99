"""Makes perceiver.npz with open_flamingo's helpers.py (commit 655f693fbfa0) and query2labels' transformer, head,
positions and loss (commit 55eb05064f4b). Needs torch and einops, and the paths of both checkouts as arguments:

    python tests/goldens/make_perceiver.py OPEN_FLAMINGO QUERY2LABELS

    resampler/{weights,gradients}/NAME, resampler/{media,out}     two rows of 3 clips of 2 frames of 5 tokens, 12 wide
    gated/{weights,gradients}/NAME, gated/{words,media,at,out,cached}   cached: the words as if they came after all
    labels/{weights,gradients}/NAME, labels/{features,labels,logits,loss}    6 labels, a map of 3 x 3, 10 channels
    asymmetric/{logits,labels}, asymmetric/CASE/{loss,gradient}   positive, negative, margin: asymmetric/CASE/numbers
    places [35 8]                                                  sines of a map of 5 x 7

Gradients are those of the sum of a fixed weighting of the outputs (labels: of the loss).
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

FLAMINGO, LABELS = (Path(x) for x in sys.argv[1:3])
CASES = {"script": (0.0, 2.0, 0.0), "class": (1.0, 4.0, 0.05)}


def module(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def originals() -> tuple[types.ModuleType, ...]:
    import einops

    extra = types.ModuleType("einops_exts")  # one function of it is used
    extra.rearrange_many = lambda xs, pattern, **sizes: tuple(einops.rearrange(x, pattern, **sizes) for x in xs)
    sys.modules["einops_exts"] = extra
    for name in ("models", "models.backbone", "models.transformer", "utils", "utils.misc"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["models.backbone"].build_backbone = sys.modules["models.transformer"].build_transformer = None
    sys.modules["utils.misc"].clean_state_dict = None
    models = LABELS / "lib" / "models"
    names = ("transformer", "query2label", "position_encoding", "aslloss")
    return module(FLAMINGO / "open_flamingo" / "src" / "helpers.py"), *(module(models / f"{name}.py") for name in names)


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scales = p.ndim == 1 and name.endswith("weight")
            p.copy_((1.0 if scales else 0.0) + 0.4 * torch.randn(p.shape))
    return model.eval()


def weighted(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)).sum()


def arrays(prefix: str, model: torch.nn.Module, **values: torch.Tensor) -> dict[str, np.ndarray]:
    out = {f"{prefix}/weights/{name}": p for name, p in model.named_parameters()}
    out |= {f"{prefix}/gradients/{name}": p.grad for name, p in model.named_parameters()}
    out |= {f"{prefix}/{name}": x for name, x in values.items()}
    return {name: x.detach().numpy() for name, x in out.items()}


def flamingo(helpers: types.ModuleType) -> dict[str, np.ndarray]:
    resampler = randomised(
        helpers.PerceiverResampler(
            dim=12, depth=2, dim_head=5, heads=3, num_latents=4, max_num_media=4, max_num_frames=3, ff_mult=2
        ), 0,
    )  # fmt: skip
    media = torch.randn(2, 3, 2, 5, 12)
    out = resampler(media)
    weighted(out).backward()
    found = arrays("resampler", resampler, media=media, out=out)

    gated = randomised(helpers.GatedCrossAttentionBlock(dim=10, dim_visual=12, dim_head=4, heads=3, ff_mult=3), 1)
    words, seen = torch.randn(2, 7, 10), torch.randn(2, 3, 4, 12)
    at = torch.zeros(2, 7, dtype=bool)
    at[0, [0, 2, 5]] = at[1, [2, 3]] = True  # row 1: two words before the first picture, and a picture that is unread
    out, cached = gated(words, seen, at), gated(words[:, :2], seen, at, use_cached_media=True)
    (weighted(out) + weighted(cached)).backward()
    return found | arrays("gated", gated, words=words, media=seen, at=at, out=out, cached=cached)


def labels(transformer, query2label, positions, losses) -> dict[str, np.ndarray]:
    inner = transformer.Transformer(8, 2, 1, 2, 14, dropout=0.0)
    places = positions.PositionEmbeddingSine(4, normalize=True, maxH=3, maxW=3)
    backbone = torch.nn.Identity()
    backbone.num_channels, backbone.forward = 10, lambda x: ([x], [places(x)])
    whole = randomised(query2label.Qeruy2Label(backbone, inner, 6), 2)
    features, wanted = torch.randn(4, 10, 3, 3), (torch.rand(4, 6) < 0.4).float()
    logits = whole(features)
    loss = losses.AsymmetricLossOptimized(gamma_neg=2, gamma_pos=0, clip=0.0, eps=1e-5)(logits, wanted)
    loss.backward()
    found = arrays("labels", whole, features=features, labels=wanted, logits=logits, loss=loss)

    logits = (3 * torch.randn(5, 7)).requires_grad_()
    wanted = (torch.rand(5, 7) < 0.4).float()
    found |= {"asymmetric/logits": logits.detach().numpy(), "asymmetric/labels": wanted.numpy()}
    for name, (positive, negative, margin) in CASES.items():
        made = losses.AsymmetricLossOptimized(gamma_neg=negative, gamma_pos=positive, clip=margin, eps=1e-5)
        loss = made(logits, wanted)
        found[f"asymmetric/{name}/gradient"] = torch.autograd.grad(loss, logits)[0].numpy()
        found[f"asymmetric/{name}/loss"] = loss.detach().numpy()
        found[f"asymmetric/{name}/numbers"] = np.array([positive, negative, margin])
    grid = positions.PositionEmbeddingSine(4, normalize=True, maxH=5, maxW=7).pe[0]
    return found | {"places": grid.permute(1, 2, 0).reshape(35, 8).numpy()}


if __name__ == "__main__":
    helpers, *rest = originals()
    np.savez_compressed(Path(__file__).with_name("perceiver.npz"), **flamingo(helpers), **labels(*rest))
