"""Do the judges know bad pictures? What must score badly, measured: python -m experiments._judges [--record]

Each row is 1,500 pictures made of drawings of the training artists, against 1,500 other drawings of theirs: real ones,
which is also what learning by heart would score; the held-out artist's, of the same concepts where he draws them; and
the controls of `mmjax/evals/controls.py`. The table says which number sees what. It needs no runs: the judges are those
in mmjax/evals/assets, whose sha256 is recorded beside the numbers.
"""

from pathlib import Path

import numpy as np

from experiments import _study
from mmjax.data import emoji_drawings
from mmjax.evals import controls, generated, judges
from mmjax.nn.outputs import Result

CONTROLS: dict[str, controls.Control] = {
    "blurred once": controls.blurred(1),
    "blurred 3 times": controls.blurred(3),
    "blurred 8 times": controls.blurred(8),
    "noise of .05": controls.noisy(0.05),
    "noise of .15": controls.noisy(0.15),
    "patches of others": controls.patches,
    "mean of the subgroup": controls.means,
    "one for each subgroup": controls.few,
    "labels of others": controls.shuffled,
    "only noise": controls.noise,
}
COUNTS = {"tiny": 60, "small": 1_500}


def other_artist(against: generated.Reference) -> np.ndarray:
    """The held-out artist's drawings of the concepts that are asked for; all concepts have one."""
    images, labels = emoji_drawings.drawings("twemoji", against.real.shape[1])
    return images[np.searchsorted(labels.concept, against.asked.concept)]


def measure(runs: Path, size: str) -> dict[str, Result]:
    against = generated.reference("train", COUNTS[size])
    rows = {"real": against.real, "an artist never seen": other_artist(against)}
    for name, control in CONTROLS.items():
        rows[name] = control(against.real, against.asked, np.random.default_rng(0))
    return {
        name: Result(generated.measure(made, against), {"pictures": generated.sheet(made, against)})
        for name, made in rows.items()
    }


if __name__ == "__main__":
    _study.main("judges", __doc__, measure, judge=judges.sha256s)
