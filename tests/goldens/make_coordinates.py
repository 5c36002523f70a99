"""Makes coordinates.json with shikras/shikra's own code: pictures of random sizes with boxes and points in pixels, what
its pipeline makes of them and writes in sentences, and what its formatters read in texts that models may write.

Needs Pillow, and the path of a checkout (commit ff79a4c) as the argument:

    python tests/goldens/make_coordinates.py CHECKOUT
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
from PIL import Image

DATASET = Path(sys.argv[1]) / "mllm" / "dataset"
TEXTS = [
    "Answer: [0.123,0.456,0.789,1.000] .", "[0.1, 0.2,0.3,0.4]", "[0.1,0.2,0.3]", "[10.5,0.2,0.3,0.4]",
    "[9.999,0,1.,0.25]", "a [0.1,0.2,0.3,0.4;0.5,0.6,0.7,0.8] b [0.000,0.000,0.000,0.000]", "[0.1,0.2,0.3,0.4",
    "[0.5,0.25] and [0.5,0.25;1.0,0.125]", "(0.1,0.2,0.3,0.4) (0.5,0.75)", "[-0.1,0.2,0.3,0.4]", "[]", "",
    "[0.1,0.2,0.3,0.4,0.5]", "[0.1,0.2,0.3,0.4;0.5,0.6]", "[[0.1,0.2,0.3,0.4]]", "[.5,.5,.5,.5]",
    "<b_st><bin_0> <bin_120> <bin_1000> <bin_7><b_ed>", "<b_st><bin_1><bin_2><bin_3><b_ed>",
    "x <b_st><bin_1><bin_2><bin_3><bin_4><b_sep><bin_5> <bin_6><bin_7><bin_8><b_ed>", "<p_st><bin_10><bin_20><p_ed>",
]  # fmt: skip


def formatters() -> tuple[types.ModuleType, types.ModuleType]:
    """The two files that this is about, without the registries and the packages that their neighbours need."""

    class Registry:
        def register_module(self):
            return lambda one: one

    def module(name: str, **contents) -> types.ModuleType:
        made = sys.modules[name] = types.ModuleType(name)
        vars(made).update(contents)
        return made

    for package in ("mllm", "mllm.dataset", "mllm.dataset.utils", "mllm.dataset.process_function"):
        module(package, __path__=[])
    module("mllm.utils", smart_tokenizer_and_embedding_resize=None)
    module(
        "mllm.dataset.root", FUNCTIONS=Registry(), TRANSFORMS=Registry(), BOXES_PROCESSOR=Registry(),
        BaseTargetProcessFunc=object, BOXES_PLACEHOLDER="<boxes>", POINTS_PLACEHOLDER="<points>",
    )  # fmt: skip
    loaded = []
    for name in ("utils.transform", "process_function.box_process_function"):
        spec = importlib.util.spec_from_file_location(f"mllm.dataset.{name}", DATASET / f"{name.replace('.', '/')}.py")
        sys.modules[spec.name] = one = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(one)
        loaded.append(one)
    return tuple(loaded)


def main() -> None:
    transform, process = formatters()
    forms = {
        "plain": process.PlainBoxFormatter(), "two": process.PlainBoxFormatter(precision=2),
        "small": process.PlainBoxFormatter(use_small_brackets=True), "bins": process.TokenFormatter(),
        "few": process.TokenFormatter(num_bins=33),
    }  # fmt: skip
    rng, cases = np.random.default_rng(0), []
    for _ in range(60):
        width, height = (int(x) for x in rng.integers(1, 900, 2))
        corners = rng.uniform(0, 1, (3, 2, 2)) * [width, height]
        boxes = np.concatenate([corners.min(1), corners.max(1)], -1).round(int(rng.integers(0, 3)))
        boxes[0] = [0, 0, width, height] if rng.random() < 0.3 else boxes[0]
        target = {"boxes": boxes.tolist(), "points": (rng.uniform(0, 1, (2, 2)) * [width, height]).round(1).tolist()}
        _, moved = transform.Expand2square()(Image.new("RGB", (width, height)), {k: list(v) for k, v in target.items()})
        side = max(width, height)
        normal = [transform.norm_box_xyxy(box, w=side, h=side) for box in moved["boxes"]]
        points = [transform.norm_point_xyxy(point, w=side, h=side) for point in moved["points"]]
        groups, spots = [[normal[0]], [normal[1], normal[2]]], [[points[0]], points]
        text = "one <boxes> two <boxes>, <points><points>."
        written = {name: form.call_on_point(form(text, groups), spots) for name, form in forms.items()}
        cases.append({"width": width, "height": height, **target, "written": written})
    read = {
        name: [{"boxes": form.extract(text), "points": form.extract_point(text)} for text in TEXTS]
        for name, form in forms.items()
    }
    squares = []
    for width, height in ((5, 2), (3, 8), (4, 4)):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        squares.append([pixels.tolist(), np.asarray(transform.expand2square(Image.fromarray(pixels))).tolist()])
    contents = {"cases": cases, "texts": TEXTS, "read": read, "squares": squares}
    Path(__file__).with_name("coordinates.json").write_text(json.dumps(contents) + "\n")


if __name__ == "__main__":
    main()
