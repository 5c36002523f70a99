"""Makes ferret.npz and ferret_words.json: what apple/ml-ferret's own code computes of our numbers.

    git clone https://github.com/apple/ml-ferret
    python tests/goldens/make_ferret.py ml-ferret        # needs torch

ferret.npz, of GeoRegionSampler (ferret_arch.py, its two imports of the package left out): map 5 x 5 of width 8, masks
30 x 20, three pictures with 2, 0 and 1 regions of 32, 10 and 200 pixels; N 32 points, blocks of (16, 6) and (4, 4),
output width 12; torch.randint gives the starts below and torch.randperm our order. Pixels are moved by a little, each
by its own, so that no two distances are equal and rounding decides nothing.

    maps [3 25 8], points [3 32 2] (after the sampler's own choice of pixels), starts [2], images [3]: whose region
    MODE/weights/NAME, MODE/gradients/NAME, MODE/maps (gradient), MODE/out [3 12]      MODE: max, mean
    plain/maps, plain/points [32 -1 where there is none], plain/weights/..., plain/out, plain/gradients/...: the simple
    alternative, FERRETMetaForCausalLM.extract_region_feature behind its adapter
    mask/N [30 20] (as [W H]), mask/N/points: pixels that rand_sample_repeat chose of masks of 32 and 10 pixels

ferret_words.json: regulate_box, coordinates as train.py writes them, decode_bbox_from_caption, remove_not_phrases_v2,
generate_mask_for_feature, on hand-made cases.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
SIZES = {"input_dim": 8, "output_dim": 12, "num_init_point": 32, "num_sub_point": [16, 4], "num_neighbor": [6, 4]}
STARTS = (7, 11)
WIDTH, HEIGHT = 30, 20


def module(path: Path, names: tuple[str, ...] = ()) -> dict:
    """The names of a file; lines that import its package, or what is not installed, are left out."""
    lines = [
        line
        for line in path.read_text().splitlines()
        if not re.match(r"(from (\.|ferret|misc|prettytable|tqdm|pycocotools)|import (pdb|ipdb|matplotlib|tqdm))", line)
    ]
    text = "\n".join(lines)
    if names:  # only these functions, and constants
        parts = [re.search(rf"^def {name}\(.*?(?=^\S)", text + "\nend", re.M | re.S).group(0) for name in names]
        constants = re.findall(r"^[A-Z_]+ = .*$", text, re.M)
        text = "\n".join(["import re", "import numpy as np", "import torch", *constants, *parts])
    space: dict = {"DEFAULT_IMAGE_PATCH_TOKEN": ""}
    exec(compile(text, str(path), "exec"), space)
    return space


def randomise(network: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            scale = weight.shape[1] ** -0.5 if weight.ndim > 1 else 0.3
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape, generator=generator) * scale)


def masks(rng: np.random.Generator) -> list[torch.Tensor]:
    out = []
    for count in (32, 10, 200):
        mask = np.zeros(WIDTH * HEIGHT)
        mask[rng.permutation(mask.size)[:count]] = 1
        out.append(torch.tensor(mask.reshape(WIDTH, HEIGHT)))  # [W H]
    return out


def sampler(arch: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 25, SIZES["input_dim"])).astype(np.float32)
    chosen = masks(rng)
    moved = rng.uniform(-0.4, 0.4, (WIDTH, HEIGHT, 2))
    size = np.array([WIDTH, HEIGHT])
    repeat, seen = arch["rand_sample_repeat"], []

    def jittered(x: torch.Tensor, count: int) -> torch.Tensor:
        pixels = (repeat(x, count) * torch.tensor(size)).round().long()
        points = ((pixels.numpy() + moved[tuple(pixels.numpy().T)]) / size).astype(np.float32).clip(0, 1)
        seen.append(points)
        return torch.tensor(points)

    def randint(low: int, high: int, shape: tuple, **_) -> torch.Tensor:
        if len(shape) == 1 and shape[0] == 3:  # the first anchors of the three regions
            return torch.full(shape, STARTS[0] if high == SIZES["num_init_point"] else STARTS[1])
        return torch.tensor(rng.integers(low, high, shape))

    out: dict[str, np.ndarray] = {"maps": maps, "starts": np.array(STARTS), "images": np.array([0, 0, 2])}
    originals = torch.randint, torch.randperm
    torch.randint, torch.randperm = randint, lambda n: torch.tensor(rng.permutation(n))
    try:
        for i, mask in enumerate(chosen[:2]):
            pixels = (repeat(mask.nonzero() / torch.tensor([[WIDTH, HEIGHT]]), 32)).numpy()
            out |= {f"mask/{i}": mask.numpy().astype(bool), f"mask/{i}/points": pixels}
        arch["rand_sample_repeat"] = jittered
        for mode in ("max", "mean"):
            network = arch["GeoRegionSampler"](**SIZES, pooler_mode=mode)
            randomise(network, 1)
            given = torch.tensor(maps, requires_grad=True)
            if mode == "mean":  # the same pixels again
                again = iter(list(seen))
                arch["rand_sample_repeat"] = lambda x, count, again=again: torch.tensor(next(again))
            regions = [[chosen[0], chosen[1]], [], [chosen[2]]]
            found = network(list(given), regions, torch.float32, torch.float32)
            result = torch.cat([x for x in found if x is not None])
            assert found[1] is None
            (result * torch.tensor(np.cos(np.arange(result.numel())).reshape(result.shape))).sum().backward()
            out |= {f"{mode}/weights/{name}": x.detach().numpy() for name, x in network.named_parameters()}
            out |= {f"{mode}/gradients/{name}": x.grad.numpy() for name, x in network.named_parameters()}
            out |= {f"{mode}/maps": given.grad.numpy(), f"{mode}/out": result.detach().numpy()}
    finally:
        torch.randint, torch.randperm = originals
    return out | {"points": np.stack(seen[:3])} | alternative(arch, maps, chosen)


def alternative(arch: dict, maps: np.ndarray, chosen: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Regions of 32 and of 10 pixels in the first picture, none in the second, one of 200 in the third, of which 64 are
    taken: the first of them."""
    adapter = torch.nn.Linear(SIZES["input_dim"], SIZES["output_dim"])
    randomise(adapter, 2)
    given = torch.tensor(maps, requires_grad=True)

    class Holder(arch["FERRETMetaForCausalLM"]):
        def get_model(self):
            return type("Model", (), {"max_sample_point": 64})()

    randperm, torch.randperm = torch.randperm, torch.arange
    try:
        regions = [[chosen[0], chosen[1]], [], [chosen[2]]]
        found = Holder().extract_region_feature(adapter(given), regions, torch.float32, torch.float32)
    finally:
        torch.randperm = randperm
    result = torch.cat([x for x in found if x is not None])
    (result * torch.tensor(np.cos(np.arange(result.numel())).reshape(result.shape))).sum().backward()
    points = np.full((3, 64, 2), -1, np.float32)
    for row, mask in zip(points, chosen, strict=True):
        pixels = (mask.nonzero() / torch.tensor([[WIDTH, HEIGHT]]))[:64].numpy()
        row[: len(pixels)] = pixels
    weights = {name: x.detach().numpy() for name, x in adapter.named_parameters()}
    gradients = {name: x.grad.numpy() for name, x in adapter.named_parameters()}
    return {
        "plain/points": points,
        **{f"plain/weights/{name}": x for name, x in weights.items()},
        **{f"plain/gradients/{name}": x for name, x in gradients.items()},
        "plain/maps": given.grad.numpy(),
        "plain/out": result.detach().numpy(),
    }


ANSWERS = (
    "A cat [10, 20, 300, 999] sits.",
    "dog [1,2,3,4], two birds [5, 6, 7, 8] [9, 10, 11, 12]. a tree [0, 0, 999, 999]",
    "nothing to see here",
    "the hat [100, 200, 300, 400] on the man [50, 60, 700, 800]; a stick [3, 4, 5, 6]!",
    "[7, 8, 9, 10]",
    "a [1, 2, 3, 4, 5] five",
    "broken [1, 2, x, 4].",
    "empty [].",
    "no opening 1, 2, 3, 4] then [5, 6, 7, 8]",
    "left open [1, 2, 3",
)
DENIALS = (
    "It is a cat, not a dog.",
    "It is not a dog, it is a cat.",
    "There is no cat. It is a dog.",
    "It is not a cat",
    "cat",
    "A nose, known to nobody. It is not clear, but no dog, perhaps a horse.",
    "It is a cat and not, say, a dog.",
)
BOXES = (((3.7, 4.2, 25.9, 18.1), (30, 20)), ((-5, 2, 40, 33), (30, 20)), ((29, 19, 29, 19), (30, 20)),
         ((0, 0, 0, 0), (640, 480)), ((319.5, 239.5, 639.99, 479.99), (640, 480)))  # fmt: skip
POINTS = (((3, 4), (30, 20)), ((29.9, 19.9), (30, 20)), ((15.6, 10.2), (30, 20)), ((0, 0), (30, 20)))


def words(checkout: Path) -> dict:
    train = module(checkout / "ferret/train/train.py", names=("regulate_box",))
    lvis = module(checkout / "ferret/eval/model_lvis.py", names=("generate_mask_for_feature",))
    lvis["pdb"] = None
    score = module(checkout / "ferret/eval/eval_lvis.py", names=("remove_not_phrases_v2",))
    decode = module(checkout / "ferret/eval/eval_refexp.py", names=("resize_bbox", "decode_bbox_from_caption"))

    def decoded(text: str):
        try:
            return decode["decode_bbox_from_caption"](text, 640, 427)
        except ValueError:
            return None

    def coordinates(place, size):  # as train.py's get_bbox_coor and its f-string
        return [int(v * (1000 * 1.0 / size[i % 2])) for i, v in enumerate(place)]

    def mask(place, size):
        return np.argwhere(lvis["generate_mask_for_feature"](list(place), *size).numpy()).tolist()  # (x, y)

    boxes = []
    for box, size in BOXES:
        regulated = train["regulate_box"](list(box), *size)
        whole = [int(v) for v in regulated]
        pixels = mask(whole, size) if size == (30, 20) else None
        boxes.append({"box": box, "size": size, "regulated": regulated, "bins": coordinates(regulated, size),
                      "whole": whole, "pixels": pixels})  # fmt: skip
    return {
        "answers": [{"text": text, "found": decoded(text)} for text in ANSWERS],
        "denials": [{"text": text, "left": score["remove_not_phrases_v2"](text)} for text in DENIALS],
        "boxes": boxes,
        "points": [{"point": p, "size": s, "bins": coordinates(p, s), "pixels": mask(p, s)} for p, s in POINTS],
    }


if __name__ == "__main__":
    checkout = Path(sys.argv[1])
    arrays = sampler(module(checkout / "ferret/model/ferret_arch.py"))
    np.savez_compressed(HERE / "ferret.npz", **arrays)
    (HERE / "ferret_words.json").write_text(json.dumps(words(checkout)) + "\n")
    for name in ("ferret.npz", "ferret_words.json"):
        print(name, f"{(HERE / name).stat().st_size / 1e3:.0f} kB")
