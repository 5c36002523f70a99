"""Block masks: which patches of the global views a student does not see, as iBOT and DINOv2 hide them.

Source: Zhou et al. 2022, arXiv:2111.07832, section 3.3 (after BEiT); numbers and order of draws from
facebookresearch/dinov2, data/masking.py and collate.py. In each group of pictures, half of the views are masked, by
shares that are spread evenly over `share`; the rest see all. Rectangles are added to a view until its share is reached
or ten in a row do not fit.

B pictures of the GLOBAL batch, G of them in a group, n patches along a side, N = n * n.
"""

import dataclasses
import math

import numpy as np
from einops import rearrange

FEWEST = 4  # patches of a rectangle, where that many are left to hide
ASPECT = 0.3  # least height / width, and width / height
TRIES = 10


@dataclasses.dataclass(frozen=True)
class BlockMasks:
    grid: int  # n, patches along a side of a global view
    group: int  # G, pictures that the original had on one device; batches hold a multiple of it
    probability: float = 0.5  # share of views that are masked at all
    share: tuple[float, float] = (0.1, 0.5)  # of a masked view's patches, least and most

    @property
    def masked_views(self) -> int:
        """Of the 2 G in a group."""
        return int(2 * self.group * self.probability)

    @property
    def bounds(self) -> np.ndarray:  # [masked_views + 1]
        """Masked view i of a group hides between bounds[i] and bounds[i + 1] of its patches."""
        return np.linspace(*self.share, self.masked_views + 1)

    @property
    def most(self) -> int:
        """Patches hidden in a group: never more than this."""
        return sum(int(self.grid**2 * bound) for bound in self.bounds[1:])

    def draw(self, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Masks bool [B 2 N] of the global batch, True where hidden."""
        groups = -(-batch_size // self.group)  # the last may be cut
        bounds = np.tile(self.bounds, (groups, 1))
        share = rng.uniform(bounds[:, :-1], bounds[:, 1:])  # [groups masked_views]
        count = np.zeros((groups, 2 * self.group), int)
        count[:, : self.masked_views] = (self.grid**2 * share).astype(int)
        count = rng.permuted(count, axis=1)
        masks = blocks(count.ravel(), self.grid, rng)
        return rearrange(masks, "(b v) h w -> b v (h w)", v=2)[:batch_size]


def blocks(count: np.ndarray, grid: int, rng: np.random.Generator) -> np.ndarray:
    """count [V], at most so many hidden patches -> masks [V n n] bool. All views try one rectangle at a time."""
    masks = np.zeros((len(count), grid, grid), bool)
    largest = grid // 2 * grid
    left, tries = count.copy(), np.where(count > 0, 0, TRIES)
    line = np.arange(grid)
    while (busy := tries < TRIES).any():
        area, aspect, down, right = rng.random((4, len(count)))
        most = np.minimum(left, largest)
        area = FEWEST + (most - FEWEST) * area
        aspect = np.exp(math.log(ASPECT) * (1 - 2 * aspect))
        height, width = (np.rint(np.sqrt(x)).astype(int) for x in (area * aspect, area / aspect))
        top, start = np.floor(down * (grid - height + 1)), np.floor(right * (grid - width + 1))
        rows = (line >= top[:, None]) & (line < (top + height)[:, None])  # [V n]
        columns = (line >= start[:, None]) & (line < (start + width)[:, None])
        new = rows[:, :, None] & columns[:, None] & ~masks
        added = new.sum((1, 2))
        good = busy & (height < grid) & (width < grid) & (added > 0) & (added <= most)
        masks |= new & good[:, None, None]
        left = left - added * good
        tries = np.where(good, np.where(left > 0, 0, TRIES), tries + 1)
    return masks
