"""Makes grounding.json with the authors' own metrics: shikras/shikra's of referring expressions and of short answers,
and NExT-ChatV/NExT-Chat's of yes and no, on answers that a model may give.

Needs torch and torchvision, and the paths of two checkouts (commits ff79a4c and 1e6c20f) as the arguments:

    python tests/goldens/make_grounding.py SHIKRA NEXT-CHAT
"""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np


class Registry:
    def register_module(self):
        return lambda one: one


def module(name: str, **contents) -> types.ModuleType:
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(contents)
    return made


def metrics(checkout: Path, name: str, file: str) -> types.ModuleType:
    """One of the data sets' files, with empty registries, under a package `name` of its own."""
    for package in ("", ".dataset", ".dataset.single_image_dataset", ".dataset.process_function"):
        module(f"{name}{package}", __path__=[])
    module(f"{name}.utils", decode_generate_ids=None)
    placeholders = {f"{one}_PLACEHOLDER": None for one in ("IMAGE", "BOXES", "EXPR", "QUESTION", "POINTS")}
    module(f"{name}.dataset.root", DATASETS=Registry(), METRICS=Registry(), **placeholders)
    module(f"{name}.dataset.utils", __path__=[])
    base = load(checkout, name, "dataset/utils/compute_metrics")
    sys.modules[f"{name}.dataset.utils"].BaseComputeMetrics = base.BaseComputeMetrics
    sys.modules[f"{name}.dataset.utils"].MInstrDataset = object
    sys.modules[f"{name}.dataset"].BaseComputeMetrics = base.BaseComputeMetrics
    sys.modules[f"{name}.dataset.process_function"].BoxFormatter = object
    return load(checkout, name, f"dataset/single_image_dataset/{file}")


def load(checkout: Path, name: str, file: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}.{file.replace('/', '.')}", checkout / "mllm" / f"{file}.py")
    sys.modules[spec.name] = one = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(one)
    return one


class Reader:
    """The grammar of the authors' formatter, which coordinates.json holds to the letter."""

    def extract(self, text: str) -> list:
        box = r"\d(?:\.\d*)?(?:,\d(?:\.\d*)?){3}"
        groups = re.findall(rf"\[({box}(?:;{box})*)\]", text)
        return [[[float(x) for x in one.split(",")] for one in group.split(";")] for group in groups]


def main() -> None:
    shikra, nextchat = (Path(one) for one in sys.argv[1:])
    rng = np.random.default_rng(0)

    def near(box: np.ndarray, amount: float) -> str:
        corners = np.clip(box + rng.normal(size=4) * amount, 0, 1).reshape(2, 2)
        return ",".join(f"{x:.3f}" for x in np.concatenate([corners.min(0), corners.max(0)]))

    targets, answers = [], []
    for amount in np.linspace(0, 0.2, 40):
        corners = rng.uniform(0, 1, (2, 2))
        box = np.concatenate([corners.min(0), corners.max(0)])
        targets.append(f"Answer: [{near(box, 0)}].")
        answers.append(f"Answer: [{near(box, amount)}].")
    answers += [  # exactly half, two boxes, two groups, a blank, reversed, nothing
        "Answer: [0.000,0.000,0.500,1.000].", "[0.0,0.0,1.0,1.0;0.0,0.0,1.0,1.0]", "[0,0,1,1] or [0,0,1,1]",
        "[0.000, 0.000,1.000,1.000]", "[0.900,0.000,0.100,1.000]", "I see nothing.",
    ]  # fmt: skip
    targets += ["Answer: [0.000,0.000,1.000,1.000]."] * 6
    rec = metrics(shikra, "shikra", "rec").RECComputeMetrics
    rec = rec({"text": None, "target": {"boxes": Reader()}}).calculate_metric(answers, targets)

    said = [
        "The answer is yes .", "The answer is no.", "So The answer is yes. The answer is no.", "yes", "",
        "The answer is yes", "The answer is a red car .", "the answer is yes.", "The answer is  yes . It is.",
    ]  # fmt: skip
    right = (
        ["The answer is yes ."] * 3
        + ["The answer is no ."] * 2
        + ["The answer is yes.", "The answer is a red car.", "The answer is yes.", "cut off"]
    )
    point_qa = metrics(shikra, "shikra", "point_qa").PointQAComputeMetrics({"text": None})
    words = point_qa.calculate_metric(said, right)
    words["found"] = [point_qa.extract_ans(text) for text in said]

    polled = [str(one) for one in rng.choice(["yes", "no"], 30)]
    truth = [one if rng.random() < 0.7 else str(rng.choice(["yes", "no"])) for one in polled]
    pope = metrics(nextchat, "nextchat", "pope").PopeComputeMetrics({"text": None})
    texts = [[f"The answer is {one}." for one in row] for row in (polled, truth)]
    contents = {
        "rec": {"answers": answers, "targets": targets, "metrics": rec},
        "words": {"answers": said, "targets": right, "metrics": words},
        "pope": {"answers": polled, "targets": truth, "metrics": pope.calculate_metric(*texts)},
    }
    Path(__file__).with_name("grounding.json").write_text(json.dumps(contents) + "\n")


if __name__ == "__main__":
    main()
