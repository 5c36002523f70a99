"""Makes dino.npz with facebookresearch/dino's own code: three epochs of two steps of a tiny ViT, as main_dino.py trains
it, with its losses, gradients, center, student and teacher; its loss alone; its attention maps. Needs torch, and the
path of a checkout (commit 7c446df) as the argument:

    python tests/goldens/make_dino.py CHECKOUT
"""

import functools
import sys
import types
from pathlib import Path

import numpy as np
import torch

CHECKOUT = Path(sys.argv[1])
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
    sys.modules[name] = types.ModuleType(name)  # main_dino.py imports them for data, which we make ourselves
    if "." in name:
        setattr(sys.modules["torchvision"], name.split(".")[1], sys.modules[name])
sys.path.insert(0, str(CHECKOUT))

import main_dino  # noqa: E402
import utils  # noqa: E402
import vision_transformer as vits  # noqa: E402

EPOCHS, PER_EPOCH, IMAGES, LOCAL = 3, 2, 3, 2
SIDE, SMALL, PATCH = 16, 8, 4
SETTINGS = {"lr": 0.02, "min_lr": 1e-3, "weight_decay": 0.04, "weight_decay_end": 0.4, "momentum": 0.8, "clip": 0.05}
TEMPERATURES, EPSILON = (0.04, 0.07, 2), 1e-3  # a large epsilon: where a gradient is rounding, Adam would follow it


def network() -> torch.nn.Module:
    vit = vits.VisionTransformer(
        img_size=[SIDE], patch_size=PATCH, embed_dim=12, depth=2, num_heads=3, mlp_ratio=4, qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    head = vits.DINOHead(12, 14, norm_last_layer=False, hidden_dim=20, bottleneck_dim=6)
    return utils.MultiCropWrapper(vit, head)


def arrays(prefix: str, named) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": x.detach().numpy().copy() for name, x in named}


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(mean + 0.3 * torch.randn(p.shape) if "weight_g" not in name else 1 + 0.2 * torch.rand(p.shape))


def training() -> dict[str, np.ndarray]:
    student, teacher = network(), network()
    randomise(student)
    teacher.load_state_dict(student.state_dict())
    loss = main_dino.DINOLoss(14, 2 + LOCAL, *TEMPERATURES, EPOCHS)
    optimizer = torch.optim.AdamW(utils.get_params_groups(student), eps=EPSILON)
    schedule = functools.partial(utils.cosine_scheduler, epochs=EPOCHS, niter_per_ep=PER_EPOCH)
    rates = schedule(SETTINGS["lr"], SETTINGS["min_lr"], warmup_epochs=1)
    decays = schedule(SETTINGS["weight_decay"], SETTINGS["weight_decay_end"])
    momenta = schedule(SETTINGS["momentum"], 1.0)
    golden, losses = arrays("before", student.named_parameters()), []
    for it in range(EPOCHS * PER_EPOCH):
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = rates[it]
            group["weight_decay"] = decays[it] if i == 0 else 0.0
        views = [torch.randn(IMAGES, 3, SIDE, SIDE) for _ in range(2)]
        views += [torch.randn(IMAGES, 3, SMALL, SMALL) for _ in range(LOCAL)]
        golden |= {f"views/{it}/{v}": x.numpy().copy() for v, x in enumerate(views)}
        value = loss(student(views), teacher(views[:2]), it // PER_EPOCH)
        optimizer.zero_grad()
        value.backward()
        if it == 0:
            golden |= arrays("gradients", ((name, p.grad) for name, p in student.named_parameters()))
        utils.clip_gradients(student, SETTINGS["clip"])
        utils.cancel_gradients_last_layer(it // PER_EPOCH, student, 1)
        optimizer.step()
        with torch.no_grad():
            for new, old in zip(student.parameters(), teacher.parameters(), strict=True):
                old.data.mul_(momenta[it]).add_((1 - momenta[it]) * new.detach().data)
        losses.append(value.item())
        golden[f"center/{it}"] = loss.center[0].numpy().copy()
    golden |= arrays("student", student.named_parameters()) | arrays("teacher", teacher.named_parameters())
    golden["losses"] = np.array(losses, np.float32)
    with torch.no_grad():
        vit, images = student.backbone, torch.tensor(golden["views/0/0"])
        golden["attention"] = vit.get_last_selfattention(images)[:, :, 0, 1:].numpy()
        golden["features"] = vit(images).numpy()
        # The grid of 4 x 4 positions for 5 x 6 patches.
        golden["wide_images"] = torch.randn(2, 3, 5 * PATCH, 6 * PATCH).numpy()
        golden["wide_features"] = vit(torch.tensor(golden["wide_images"])).numpy()
    return golden


def loss_alone() -> dict[str, np.ndarray]:
    loss = main_dino.DINOLoss(9, 5, *TEMPERATURES, 6)
    loss.center = torch.randn(1, 9) * 0.3
    golden = {"loss/center": loss.center[0].numpy().copy()}
    student, teacher = torch.randn(5 * 4, 9, requires_grad=True), torch.randn(2 * 4, 9)
    golden |= {
        "loss/student": student.detach().numpy().reshape(5, 4, 9),
        "loss/teacher": teacher.numpy().reshape(2, 4, 9),
    }
    value = loss(student, teacher, 0)
    value.backward()
    golden |= {"loss/value": value.detach().numpy(), "loss/gradient": student.grad.numpy().reshape(5, 4, 9)}
    golden["loss/moved_center"] = loss.center[0].numpy().copy()
    return golden | {"loss/temperatures": loss.teacher_temp_schedule.astype(np.float32)}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29611", rank=0, world_size=1)
    torch.manual_seed(0)
    np.savez_compressed(Path(__file__).parent / "dino.npz", **training(), **loss_alone())
