"""The published CLIP at its published batch, on a pod that is not here: minutes of compiling, so marked `aot`."""

import pytest

from mmjax.parallel import plan
from mmjax.train import overrides, step

pytestmark = pytest.mark.aot

PODS = ("v5e:16x16",)
VISION = {"tokens": 257, "width": 1024, "depth": 24}  # Radford et al. 2021, table 20: ViT-L/14 at 224 pixels
TEXT = {"tokens": 77, "width": 768, "depth": 12}


def step_flops(tokens: int, width: int, depth: int) -> float:
    """Of one row. A layer's forward pass is 12 products of width^2 a token and attention's two over all tokens.

    Backward costs twice that; remat repeats the forward pass but for the MLP's last product, which nobody reads.
    """
    forward = 12 * width**2 + 2 * tokens * width
    return 2.0 * depth * tokens * (4 * forward - 4 * width**2)


@pytest.mark.parametrize("pod", PODS)
def test_clip_l14_at_batch_32768_fits_a_pod(pod):
    pytest.importorskip("libtpu")
    experiment = overrides.load_experiment("experiments/clip_emoji.py", "paper")
    assert experiment.batch_size == 32_768
    machine = plan.topology(pod)
    mesh = experiment.mesh.build(machine.devices)
    made = plan.make(step.build(experiment, mesh).trace(), machine, mesh)
    print(made)  # shown with -s

    assert len(machine.devices) == 256
    assert made.fits, made.reason
    # README has the numbers. A lost constraint or remat shows as a GiB more, or as collectives inside the layers.
    assert 0 < made.memory.arguments < made.memory.peak <= made.memory.needed < 7 * 2**30
    # Parameters are gathered layer by layer, embeddings for the contrast; gradients are summed.
    assert 0 < made.collectives["all-gather"] < 150
    assert 0 < made.collectives["all-reduce"] + made.collectives["reduce-scatter"] < 40
    assert made.collectives["all-to-all"] + made.collectives["collective-permute"] == 0
    assert made.whole == ()  # nothing large is held by every chip
    rows = experiment.batch_size / len(machine.devices)
    assert made.flops == pytest.approx(rows * (step_flops(**VISION) + step_flops(**TEXT)), rel=0.02)
