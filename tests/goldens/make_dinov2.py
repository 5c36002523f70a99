"""Makes dinov2.npz with facebookresearch/dinov2's own code: steps of its SSLMetaArch on tiny models in two processes
over gloo, each with three images, as FSDP on two devices would train: losses, gradients, centers, student and teacher.

    giant   as train/vitg14.yaml: Sinkhorn-Knopp, heads of their own, gated MLPs; and registers
    short   as ssl_default_config.yaml: centering, one head, plain MLPs, rates that fall from layer to layer

Needs torch, and the path of a checkout (commit b8931f7) as the argument:

    python tests/goldens/make_dinov2.py CHECKOUT
"""

import functools
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch

os.environ["XFORMERS_DISABLED"] = "1"  # the plain attention and MLPs
CHECKOUT, HERE = Path(sys.argv[1]), Path(__file__).parent
STEPS, RANKS, IMAGES, LOCAL, SIDE, SMALL, PATCH = 4, 2, 3, 2, 16, 8, 4
MOMENTUM, TEMPERATURES, EPSILON = 0.8, (0.04, 0.07, 2), 1e-3


def module(name: str, **members) -> types.ModuleType:
    sys.modules[name] = made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


class Together:
    """What xformers' BlockDiagonalMask does for heads: rows of several tensors side by side, and apart again."""

    def __init__(self, tensors):
        self.lengths = [x.shape[1] for x in tensors]

    @classmethod
    def from_tensor_list(cls, tensors):
        return cls(tensors), torch.cat(tensors, dim=1)

    def split(self, x):
        return list(x.split(self.lengths, dim=1))


def nothing(*_, **__) -> None:
    pass


def load():
    """SSLMetaArch and what it needs, without FSDP, CUDA and xformers."""
    module("xformers")
    module("xformers.ops", fmha=types.SimpleNamespace(BlockDiagonalMask=Together))
    sys.path.insert(0, str(CHECKOUT))
    names = ("get_fsdp_wrapper", "ShardedGradScaler", "get_fsdp_modules", "reshard_fsdp_model")
    module("dinov2.fsdp", **dict.fromkeys(names, nothing))
    module("dinov2.train", __path__=[str(CHECKOUT / "dinov2" / "train")])  # its __init__ wants fvcore
    torch.Tensor.cuda = lambda self, **_: self
    from dinov2.train import ssl_meta_arch
    from dinov2.utils.utils import CosineScheduler

    return ssl_meta_arch, CosineScheduler


def space(**fields) -> types.SimpleNamespace:
    return types.SimpleNamespace(**fields)


def settings(giant: bool) -> types.SimpleNamespace:
    head = {"head_n_prototypes": 14, "head_bottleneck_dim": 6, "head_nlayers": 3, "head_hidden_dim": 20}
    return space(
        compute_precision=space(grad_scaler=False),
        student=space(pretrained_weights="", arch="tiny"),
        crops=space(global_crops_size=SIDE, local_crops_number=LOCAL),
        dino=space(loss_weight=1.0, koleo_loss_weight=0.1, **head),
        ibot=space(
            loss_weight=1.0, separate_head=giant, mask_ratio_min_max=(0.1, 0.5), mask_sample_probability=0.5,
            **head | {"head_n_prototypes": 11 if giant else 14},
        ),
        train=space(centering="sinkhorn_knopp" if giant else "centering"),
        optim=space(layerwise_decay=1.0 if giant else 0.8, patch_embed_lr_mult=0.2),
    )  # fmt: skip


def backbone(giant: bool) -> torch.nn.Module:
    """Takes lists of crops one after the other, as it must without xformers."""
    from dinov2.layers import MemEffAttention
    from dinov2.layers import NestedTensorBlock as Block
    from dinov2.models.vision_transformer import DinoVisionTransformer

    made = DinoVisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=12, depth=2, num_heads=3, mlp_ratio=4, init_values=1e-5,
        block_fn=functools.partial(Block, attn_class=MemEffAttention), ffn_layer="swiglufused" if giant else "mlp",
        block_chunks=0, num_register_tokens=2 if giant else 0, interpolate_antialias=giant,
        interpolate_offset=0.0 if giant else 0.1,
    )  # fmt: skip
    plain = made.forward

    def forward(x, masks=None, is_training=True):
        if isinstance(x, list):
            return [plain(a, masks=b, is_training=is_training) for a, b in zip(x, masks, strict=True)]
        return plain(x, masks=masks, is_training=is_training)

    made.forward = forward
    return made


def arrays(prefix: str, named) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": x.detach().numpy().copy() for name, x in named}


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if ("norm" in name and name.endswith("weight")) or "gamma" in name else 0.0
            p.copy_(mean + 0.3 * torch.randn(p.shape) if "weight_g" not in name else 1 + 0.2 * torch.rand(p.shape))


def batches() -> list[dict[str, torch.Tensor]]:
    """The same on both ranks: crops [RANKS IMAGES V 3 s s] of half precision, masks [RANKS IMAGES 2 N]."""
    torch.manual_seed(1)
    made = []
    for _ in range(STEPS):
        crops = {
            name: torch.randn(RANKS, IMAGES, views, 3, side, side).half()
            for name, views, side in (("global_crops", 2, SIDE), ("local_crops", LOCAL, SMALL))
        }
        masks = torch.zeros(RANKS, IMAGES, 2, 16, dtype=torch.bool)
        for rank in range(RANKS):
            for view in torch.randperm(2 * IMAGES)[:IMAGES]:
                masks[rank].view(-1, 16)[view, torch.randperm(16)[: int(torch.randint(1, 8, ()))]] = True
        made.append(crops | {"masks": masks})
    return made


def of_rank(batch: dict[str, torch.Tensor], rank: int) -> dict:
    """collate.py's dictionary: crops one after the other."""
    crops = {name: batch[name][rank].float().transpose(0, 1).flatten(0, 1) for name in ("global_crops", "local_crops")}
    masks = batch["masks"][rank].transpose(0, 1).flatten(0, 1)
    weight = (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks]
    index = masks.flatten().nonzero().flatten()
    return {
        "collated_global_crops": crops["global_crops"],
        "collated_local_crops": crops["local_crops"],
        "collated_masks": masks,
        "mask_indices_list": index,
        "masks_weight": weight,
        "upperbound": len(index) + 5,
        "n_masked_patches": torch.full((1,), len(index)),
    }


def train(rank: int, giant: bool) -> dict[str, np.ndarray]:
    ssl_meta_arch, schedule = load()
    cfg = settings(giant)
    ssl_meta_arch.build_model_from_cfg = lambda _: (backbone(giant), backbone(giant), 12)
    torch.manual_seed(0)
    model = ssl_meta_arch.SSLMetaArch(cfg)
    model.need_to_synchronize_fsdp_streams = False
    randomise(model.student)
    model.teacher.load_state_dict(model.student.state_dict())
    model.train()
    optimizer = torch.optim.AdamW(model.get_params_groups(), betas=(0.9, 0.999), eps=EPSILON)
    rates = schedule(0.02, 1e-3, STEPS)
    decays = schedule(0.04, 0.2, STEPS)
    momenta = schedule(MOMENTUM, 1.0, STEPS)
    warm = TEMPERATURES[2]
    temperatures = schedule(TEMPERATURES[1], TEMPERATURES[1], warm, warm, TEMPERATURES[0])
    golden, losses = arrays("before", model.student.named_parameters()), []
    for it, batch in enumerate(batches()):
        for group in optimizer.param_groups:
            late = group["is_last_layer"] and it < 1
            group["lr"] = 0.0 if late else rates[it] * group["lr_multiplier"]
            group["weight_decay"] = decays[it] * group["wd_multiplier"]
        optimizer.zero_grad()
        parts = model.forward_backward(of_rank(batch, rank), teacher_temp=temperatures[it])
        for p in model.student.parameters():
            torch.distributed.all_reduce(p.grad)
            p.grad /= RANKS
        losses.append(torch.stack([x.detach().float() for _, x in sorted(parts.items())]))
        torch.distributed.all_reduce(losses[-1])
        if it == 0:
            golden |= arrays("gradients", ((name, p.grad) for name, p in model.student.named_parameters()))
        for part in model.student.values():
            torch.nn.utils.clip_grad_norm_(part.parameters(), 0.05)
        optimizer.step()
        with torch.no_grad():
            for new, old in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
                old.mul_(momenta[it]).add_(new, alpha=1 - momenta[it])
    model.dino_loss.apply_center_update()
    model.ibot_patch_loss.apply_center_update()
    golden |= arrays("student", model.student.named_parameters()) | arrays("teacher", model.teacher.named_parameters())
    golden |= {"center/cls": model.dino_loss.center.numpy(), "center/patch": model.ibot_patch_loss.center.numpy()}
    # By name: global crops, local crops, patches (halved), KoLeo (weighted and halved).
    golden["losses"] = torch.stack(losses).numpy() / RANKS
    return golden


def work(rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29612", rank=rank, world_size=RANKS)
    golden = {}
    for name, giant in (("giant", True), ("short", False)):
        golden |= {f"{name}/{key}": x for key, x in train(rank, giant).items()}
    if rank == 0:
        for it, batch in enumerate(batches()):
            golden |= {f"batch/{it}/{key}": x.flatten(0, 1).numpy() for key, x in batch.items()}
        np.savez_compressed(HERE / "dinov2.npz", **golden)


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, nprocs=RANKS)
