"""Block masks against the published algorithm, view by view, on the same random numbers."""

import math

import numpy as np
import pytest

from mmjax.data import masking


class Recorded:
    """A generator that keeps what it gave, so that a loop over views can read the same numbers."""

    def __init__(self, seed):
        self.rng, self.given = np.random.default_rng(seed), []

    def random(self, shape):
        self.given.append(self.rng.random(shape))
        return self.given[-1]


def one_view(count, grid, numbers):
    """facebookresearch/dinov2's MaskingGenerator as plain loops; numbers: (area, aspect, down, right) for each try."""
    numbers, mask, done = iter(numbers), np.zeros((grid, grid), bool), 0
    while done < count:
        most, added = min(count - done, int(0.5 * grid) * grid), 0
        for _ in range(10):
            a, r, d, c = next(numbers)
            area = 4 + (most - 4) * a
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * r)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width < grid and height < grid:
                top, left = int(d * (grid - height + 1)), int(c * (grid - width + 1))
                covered = mask[top : top + height, left : left + width].sum()
                if 0 < height * width - covered <= most:
                    mask[top : top + height, left : left + width] = True
                    added = height * width - covered
                    break
        if not added:
            break
        done += added
    return mask


@pytest.mark.parametrize("grid", [4, 7, 16])
def test_each_view_follows_the_published_loop(grid):
    rng = Recorded(grid)
    count = np.random.default_rng(0).integers(0, grid**2 // 2, 60)
    masks = masking.blocks(count, grid, rng)
    numbers = np.stack(rng.given)  # [tries 4 V]
    for view in range(60):
        np.testing.assert_array_equal(masks[view], one_view(count[view], grid, numbers[:, :, view]))
    assert (masks.sum((1, 2)) <= count).all()
    assert masks.sum() > 0.7 * count.sum()


def test_half_of_the_views_hide_shares_spread_over_the_range():
    blocks = masking.BlockMasks(grid=16, group=32)
    masks = blocks.draw(96, np.random.default_rng(0))
    assert masks.shape == (96, 2, 256)
    for group in masks.reshape(3, 64, 256):
        hidden = np.sort(group.sum(1))
        assert (hidden[:32] == 0).all()
        wanted = 256 * np.linspace(0.1, 0.5, 33)
        assert (hidden[32:] <= np.ceil(wanted[1:])).all()
        assert (hidden[32:] >= wanted[:-1] - 40).all()  # ten tries did not always find room
        assert hidden.sum() <= blocks.most
    assert masks.any(2).sum(0).min() > 30  # first and second views alike


def test_a_batch_that_cuts_its_last_group_has_the_same_shapes():
    assert masking.BlockMasks(grid=4, group=8).draw(1, np.random.default_rng(0)).shape == (1, 2, 16)


def test_the_budget_is_what_the_original_pads_to():
    """collate.py's upperbound for 12 pictures of 16 x 16 patches, added up by hand."""
    bounds = [0.1 + 0.4 * i / 12 for i in range(1, 13)]
    assert masking.BlockMasks(grid=16, group=12).most == sum(math.floor(256 * bound + 1e-9) for bound in bounds)
