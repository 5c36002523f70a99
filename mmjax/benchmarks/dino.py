"""One update of DINO in mmjax against facebookresearch/dino's own code, on the CPU.

    git clone https://github.com/facebookresearch/dino
    python -m mmjax.benchmarks dino --checkout dino
    python -m mmjax.benchmarks dino --checkout dino --size tiny --pairs 2

Both sides take the same uint8 crops and start from the same weights: student and teacher, the loss with its center,
gradients, clipping array by array, AdamW with a moving decay, and the teacher's average. That they compute the same is
asserted before anything is timed, by the losses of several updates. The original's networks, loss, groups of
parameters, clipping and schedules are called as they are; its loop, which wants a GPU, is written out here. It has no
convolutional stem, no KoLeo, and draws its own random numbers, so both sides run without a stem, without KoLeo and
without stochastic depth, and with the last layer moving from the start. They take turns as in benchmarks/clip.py.
"""

import argparse
import dataclasses
import functools
import os
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.benchmarks import paired
from mmjax.benchmarks.updates import BATCHES, STEPS, Updates

FILES = ("main_dino.py", "utils.py", "vision_transformer.py")  # read from the checkout
COMPARED = 4  # updates whose losses must be equal


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported; see benchmarks/clip.py
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    experiment = _experiment(options)
    batches = experiment.data.batches(experiment.batch_size, seed=0)
    fixed = [batches[i] for i in range(BATCHES)]
    ours = Updates(experiment, fixed)
    crops = {name: "x".join(map(str, x.shape)) for name, x in fixed[0].items()}
    print(paired.machine("jax", "flax", "torch"))
    print(f"{options.experiment} {options.size}: {crops}, {len(os.sched_getaffinity(0))} threads a side, float32")
    c, head = experiment.task.model.config.vision, experiment.task.model.config.head
    print(
        f"patch {c.patch_size}, width {c.width}, depth {c.depth}, heads {c.num_heads}, hidden {c.hidden}; "
        f"head {head.hidden}, {head.bottleneck}, {head.prototypes}"
    )
    print(f"{options.pairs} pairs, {STEPS} updates a turn, order A B B A; load {os.getloadavg()[0]:.1f}")
    theirs = _rival(options.checkout, ours, experiment, fixed)
    if theirs is None:
        return
    for i in range(COMPARED):
        first, second = ours.update(fixed[i % BATCHES]), theirs.update(fixed[i % BATCHES])
        if abs(first - second) > 1e-4 * second:
            raise RuntimeError(f"the sides do not compute the same: loss {i} is {first} in mmjax, {second} in PyTorch")
    ours.turn(), theirs.turn()
    result = paired.measure(ours.turn, theirs.turn, options.pairs)
    images = experiment.batch_size * STEPS
    ratios = (paired.times_faster(*result[:2]), paired.times_faster(*result[2:]))
    print(f"\n{'':10} {'images/s':>9} {'PyTorch':>9}   mmjax is ... x as fast (quartiles)")
    print(f"{'':10} {'':>9} {'':>9}   {'on the clock':22} in CPU seconds")
    shares = "    ".join(f"{median:5.2f} ({low:5.2f} - {high:5.2f})" for median, low, high in ratios)
    print(f"{'DINO':10} {images / np.median(result.first):9.1f} {images / np.median(result.second):9.1f}   {shares}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="a clone of https://github.com/facebookresearch/dino")
    parser.add_argument("--experiment", type=Path, default=Path("experiments/dino_emoji.py"))
    parser.add_argument("--size", default="small")
    parser.add_argument("--pairs", type=int, default=10, help="timed pairs, even (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for each side (default: %(default)s)")
    return parser.parse_args()


def _experiment(options: argparse.Namespace) -> Any:
    if not options.experiment.exists():
        raise SystemExit(f"{options.experiment} does not exist; run from the repository's root, or give --experiment")
    experiment = runpy.run_path(str(options.experiment))["experiment"](options.size)
    config = experiment.task.model.config
    vision = dataclasses.replace(config.vision, stem=(), drop_path=0.0)
    config = dataclasses.replace(config, vision=vision, spread=None)
    # No warm-up: the first of the compared updates shall move something.
    optimizer = dataclasses.replace(experiment.optimizer, warmup=0, frozen_steps=0)
    task = dataclasses.replace(experiment.task, model=type(experiment.task.model)(config))
    return dataclasses.replace(experiment, task=task, optimizer=optimizer)


def _rival(checkout: Path | None, ours: Updates, experiment: Any, batches: list[dict]) -> "_Theirs | None":
    """None where it cannot run, having said why."""
    try:
        import torch
    except ImportError as error:
        print(f"PyTorch side not run: {error}; it needs `pip install mmjax[parity]`")
        return None
    missing = FILES if checkout is None else [name for name in FILES if not (checkout / name).exists()]
    if missing:
        print(
            f"PyTorch side not run: no {', '.join(missing)} in {checkout or 'the checkout'}; it needs "
            "`git clone https://github.com/facebookresearch/dino` and --checkout with that folder"
        )
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return _Theirs(_original(checkout), ours.state.variables["params"], experiment, batches)


def _original(checkout: Path) -> types.SimpleNamespace:
    """The original's modules, by the names of their files."""
    import torch

    # main_dino.py imports torchvision for its data, which is not called here.
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
        if "." in name:
            setattr(sys.modules["torchvision"], name.split(".")[1], sys.modules[name])
    if not torch.distributed.is_initialized():  # the loss sums its center over the processes
        store = f"file://{tempfile.mkdtemp()}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    sys.path.insert(0, str(checkout.resolve()))
    try:
        import main_dino
        import utils
        import vision_transformer
    finally:
        sys.path.pop(0)
    return types.SimpleNamespace(main_dino=main_dino, utils=utils, vision_transformer=vision_transformer)


def original_names(params: dict) -> dict[str, np.ndarray]:
    """The parameters of a DINO as facebookresearch/dino's MultiCropWrapper names and shapes them."""
    backbone, head = params["backbone"], params["head"]

    def pair(name: str, part: dict) -> dict:  # a linear layer or a norm
        kernel = np.asarray(part["kernel"]).T if "kernel" in part else part["scale"]
        return {f"{name}.weight": kernel, f"{name}.bias": part["bias"]}

    flat = {
        "backbone.cls_token": backbone["class_embed"][None, None],
        "backbone.pos_embed": backbone["pos_embed"][None],
        "backbone.patch_embed.proj.weight": np.asarray(backbone["patch_embed"]["kernel"]).transpose(3, 2, 0, 1),
        "backbone.patch_embed.proj.bias": backbone["patch_embed"]["bias"],
        **pair("backbone.norm", backbone["norm"]),
        **pair("head.mlp.0", head["up"]),
        **pair("head.mlp.2", head["transform"]),
        **pair("head.mlp.4", head["down"]),
        "head.last_layer.weight_v": np.asarray(head["prototypes"]["kernel"]).T,
        "head.last_layer.weight_g": head["prototypes"]["gain"][:, None],
    }
    stack = backbone["layers"]
    for i in range(len(stack["norm1"]["scale"])):
        name = f"backbone.blocks.{i}"
        for ours, theirs in (("norm1", "norm1"), ("norm2", "norm2")):
            flat |= pair(f"{name}.{theirs}", {key: x[i] for key, x in stack[ours].items()})
        for ours, theirs in (("up", "fc1"), ("down", "fc2")):
            flat |= pair(f"{name}.mlp.{theirs}", {key: x[i] for key, x in stack["mlp"][ours].items()})
        attention = stack["attention"]
        flat |= pair(f"{name}.attn.proj", {key: x[i] for key, x in attention["out"].items()})
        parts = [pair("", {key: x[i] for key, x in attention[one].items()}) for one in ("query", "key", "value")]
        flat |= {f"{name}.attn.qkv{key}": np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {name: np.array(x) for name, x in flat.items()}


class _Theirs:
    """main_dino.py's training, without its GPU, its data and its log."""

    def __init__(self, original: types.SimpleNamespace, params: dict, experiment: Any, batches: list[dict]):
        import torch

        self.torch, self.utils, self.batches, self.it = torch, original.utils, batches, 0
        self.config, o, config = experiment.task.model.config, experiment.optimizer, experiment.task.model.config
        weights = {name: torch.from_numpy(x) for name, x in original_names(params).items()}
        self.student, self.teacher = (_network(original, config).train() for _ in range(2))
        for network in (self.student, self.teacher):
            network.load_state_dict(weights)
        self.teacher.requires_grad_(False)
        epochs = -(-experiment.steps // config.epoch)
        views = sum(batches[0][name].shape[1] for name in ("global_crops", "local_crops"))
        self.loss = original.main_dino.DINOLoss(
            config.head.prototypes, views, *config.teacher_temperature, config.ramp, epochs, config.student_temperature,
            config.center_momentum,
        )  # fmt: skip
        groups = original.utils.get_params_groups(self.student)
        self.optimizer, self.clip = torch.optim.AdamW(groups, betas=(o.b1, o.b2), eps=o.eps), o.clip
        schedule = functools.partial(original.utils.cosine_scheduler, epochs=1, niter_per_ep=experiment.steps)
        self.rates, self.decays = schedule(o.peak, o.end), schedule(o.weight_decay, o.weight_decay_end)
        # Its start is what the task's own average gives a parameter of 1 beside a teacher of 0.
        follow = experiment.task.after_update({"params": np.ones(1), "teacher": np.zeros(1)}, 0)["teacher"]
        self.momenta = schedule(1 - float(follow[0]), 1.0)

    def _views(self, batch: dict) -> list:
        torch, vision = self.torch, self.config.vision
        mean, std = torch.tensor(vision.image_mean), torch.tensor(vision.image_std)
        crops = [torch.from_numpy(batch[name]) for name in ("global_crops", "local_crops")]
        crops = [((x.float() / 255 - mean) / std).permute(1, 0, 4, 2, 3) for x in crops]
        return [view for x in crops for view in x]

    def update(self, batch: dict) -> float:
        torch, it = self.torch, min(self.it, len(self.rates) - 1)
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.rates[it]
            group["weight_decay"] = self.decays[it] if i == 0 else 0.0
        views = self._views(batch)
        taught = self.teacher(views[:2])
        loss = self.loss(self.student(views), taught, it // self.config.epoch)
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.utils.clip_gradients(self.student, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            for new, old in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                old.mul_(self.momenta[it]).add_((1 - self.momenta[it]) * new)
        self.it += 1
        return value

    def turn(self) -> None:
        for i in range(STEPS):
            self.update(self.batches[i % BATCHES])


def _network(original: types.SimpleNamespace, config: Any) -> Any:
    import torch

    c, vits = config.vision, original.vision_transformer
    vit = vits.VisionTransformer(
        img_size=[c.image_size], patch_size=c.patch_size, embed_dim=c.width, depth=c.depth, num_heads=c.num_heads,
        mlp_ratio=c.hidden / c.width, qkv_bias=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=c.epsilon),
    )  # fmt: skip
    head = vits.DINOHead(
        c.width, config.head.prototypes, norm_last_layer=False, hidden_dim=config.head.hidden,
        bottleneck_dim=config.head.bottleneck,
    )  # fmt: skip
    return original.utils.MultiCropWrapper(vit, head)
