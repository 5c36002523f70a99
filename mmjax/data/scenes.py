"""Scenes: cut-outs placed on a background, with the exact mask and box of each.

    cut-outs [B n S S 4] + Layout -compose-> images [B s s 3], masks [B n s s], boxes [B n 4]

B batch, n objects of a scene at most, S source side, s side of the canvas. Layouts are composed, pixels are the
artists' own. The canvas is cut into cells and each object lies about its own, so objects hide each other only where
they are larger than a cell, turned, or strewn beyond it; later ones lie on top of earlier ones.

Every random number is in a `Layout`, made for the GLOBAL batch; a process that holds some of the rows takes those rows.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from einops import rearrange

from mmjax.data import augment, emoji, pipeline


@dataclasses.dataclass(frozen=True)
class Composer:
    """What scenes look like."""

    size: int = 64  # s, pixels
    objects: tuple[int, int] = (1, 3)  # fewest and most
    scale: tuple[float, float] = (0.6, 1.0)  # size of an object, in cells
    rotation: float = 12.0  # degrees, each way
    strewn: float = 0.0  # how far the centre is moved besides, in cells, each way: then objects overlap
    backgrounds: tuple[float, float, float, float] = (0.3, 0.3, 0.2, 0.2)  # shares: white, plain, gradient, blocks

    def __post_init__(self):
        fewest, most = self.objects
        if not 1 <= fewest <= most:
            raise ValueError(f"objects are (fewest, most) with 1 <= fewest <= most, got {self.objects}")

    @property
    def cells(self) -> int:
        """Along a side: as few as hold the most objects."""
        return math.isqrt(self.objects[1] - 1) + 1


class Layout(NamedTuple):
    """The random numbers of a batch of scenes; row b of each field is for scene b. Lengths are in canvas sides."""

    count: np.ndarray  # [B] objects
    scale: np.ndarray  # [B n]
    shift: np.ndarray  # [B n 2] x, y of the centre, from the canvas's centre
    angle: np.ndarray  # [B n] radians, counter-clockwise
    flip: np.ndarray  # [B n] bool
    paints: np.ndarray  # [B 2 3] the background's two colours
    mix: np.ndarray  # [B K K] blend of the two (augment.background)
    colour: np.ndarray | None = None  # [B n 3 3] acts on (R, G, B) of each object; None: drawings keep their colours
    offset: np.ndarray | None = None  # [B n 3] added after `colour`


class Scene(NamedTuple):
    """Pictures and what is in them. Objects without a visible pixel, and those beyond the count, are not present."""

    images: np.ndarray  # [B s s 3] uint8
    masks: np.ndarray  # [B n s s] bool: more than half of the pixel's colour is this object's, so objects share none
    boxes: np.ndarray  # [B n 4] float32 x0, y0, x1, y1 in [0, 1] about the mask's pixels; zeros where not present
    present: np.ndarray  # [B n] bool
    visible: np.ndarray  # [B n] float32 share of the object's colour that no other hides


def draw(config: Composer, batch_size: int, rng: np.random.Generator) -> Layout:
    """Random layouts; `flip` is true for half of the objects."""
    fewest, most = config.objects
    several = (batch_size, most)
    scale = rng.uniform(*config.scale, several)
    cell = np.argsort(rng.random((batch_size, config.cells**2)), axis=1)[:, :most]  # one for each object
    corner = np.stack([cell % config.cells, cell // config.cells], -1)  # x, y
    # In its cell wherever it fits there; a larger one hangs over on both sides.
    centre = corner + 0.5 + rng.uniform(-0.5, 0.5, (*several, 2)) * np.abs(1 - scale[..., None])
    if config.strewn:
        edge = np.minimum(scale, 1)[..., None] / 2  # no object is moved out of the canvas
        moved = centre + rng.uniform(-config.strewn, config.strewn, centre.shape)
        centre = np.clip(moved, edge, config.cells - edge)
    paints, mix = augment.backgrounds(augment.Augment(backgrounds=config.backgrounds), batch_size, rng)
    return Layout(
        count=rng.integers(fewest, most + 1, batch_size),
        scale=(scale / config.cells).astype(np.float32),
        shift=(centre / config.cells - 0.5).astype(np.float32),
        angle=np.deg2rad(rng.uniform(-config.rotation, config.rotation, several)).astype(np.float32),
        flip=rng.random(several) < 0.5,
        paints=paints,
        mix=mix,
    )


def take(layouts: Layout, rows: slice | np.ndarray) -> Layout:
    """The layouts of some rows."""
    return Layout(*(None if field is None else field[rows] for field in layouts))


def recoloured(layouts: Layout, config: augment.Augment, rng: np.random.Generator) -> Layout:
    """Each object in colours of its own: hue, saturation, contrast and brightness of `config`."""
    colour, offset = augment.colour_jitter(config, layouts.scale.size, rng)
    shape = layouts.scale.shape
    return layouts._replace(colour=colour.reshape(*shape, 3, 3), offset=offset.reshape(*shape, 3))


def compose(cutouts: np.ndarray, layouts: Layout, size: int, may_flip: np.ndarray | bool = True) -> Scene:
    """Cut-outs [B n S S 4] uint8 -> scenes of side `size`.

    `may_flip` [B n] bool: whether the mirror image still means the same (an arrow's doesn't).
    """
    if cutouts.ndim != 5 or cutouts.shape[:2] != layouts.scale.shape or cutouts.shape[-1] != 4:
        batch, most = layouts.scale.shape
        raise ValueError(f"cutouts must be [{batch} {most} S S 4] as the layouts have it, got {list(cutouts.shape)}")
    layouts = layouts._replace(flip=layouts.flip & may_flip)
    few = max(1, augment.CACHED // (size**2 * cutouts.shape[1]))  # a few at a time stay in the processor's cache
    parts = [slice(first, first + few) for first in range(0, len(cutouts), few)]
    painted = zip(*(_paint(cutouts[rows], take(layouts, rows), size) for rows in parts), strict=True)
    images, shares, visible = (np.concatenate(part) for part in painted)
    masks = shares > 0.5
    boxes, present = enclosing(masks)
    return Scene(images, masks, boxes, present, visible)


def _paint(cutouts: np.ndarray, layouts: Layout, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [B s s 3] uint8, each object's share of each pixel's colour [B n s s], and how much of it shows [B n]."""
    batch, most, side = cutouts.shape[:3]
    placed = augment.still(batch * most)._replace(
        scale=layouts.scale.reshape(-1),
        shift=layouts.shift.reshape(-1, 2),
        angle=layouts.angle.reshape(-1),
        flip=layouts.flip.reshape(-1),
    )
    packed = augment.framed(rearrange(cutouts, "b n h w c -> (b n) h w c"))
    colour, alpha = augment.sample(packed, *augment.source_points(placed, side, size))
    if layouts.colour is not None:
        matrix, offset = layouts.colour.reshape(-1, 3, 3), layouts.offset.reshape(-1, 3, 1)
        colour = np.clip(matrix @ colour + offset * alpha, 0, alpha)
    drawn = np.arange(most) < layouts.count[:, None]  # [B n]
    colour, alpha = (
        rearrange(x, "(b n) c p -> b n c p", n=most) * drawn[..., None, None] for x in (colour, alpha)
    )  # fmt: skip
    canvas, shares, uncovered = (
        augment.background(layouts.paints, layouts.mix, size),
        np.empty_like(alpha),
        np.float32(1),
    )
    for n in range(most):
        canvas = colour[:, n] + (1 - alpha[:, n]) * canvas
    for n in reversed(range(most)):  # from the top
        shares[:, n] = alpha[:, n] * uncovered
        uncovered = uncovered * (1 - alpha[:, n])
    pixels = (255 * np.clip(canvas, 0, 1) + 0.5).astype(np.uint8)
    visible = shares.sum((2, 3)) / np.maximum(alpha.sum((2, 3)), 1e-6)
    return (
        rearrange(pixels, "b c (h w) -> b h w c", h=size),
        rearrange(shares, "b n 1 (h w) -> b n h w", h=size),
        visible,
    )


def enclosing(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """masks [... h w] bool -> boxes [... 4] float32 about their pixels' outer edges, and whether there are any."""
    edges = []
    for axis in (-2, -1):  # seen along the rows: which columns are touched
        touched = masks.any(axis)
        count = touched.shape[-1]
        first, last = touched.argmax(-1), count - touched[..., ::-1].argmax(-1)
        edges.append((first / count, last / count))
    (x0, x1), (y0, y1) = edges
    present = masks.any((-2, -1))
    return (np.stack([x0, y0, x1, y1], -1) * present[..., None]).astype(np.float32), present


def shrunk(cutouts: np.ndarray, composer: Composer) -> np.ndarray:
    """Drawings [M 64 64 4] at about the size that they are shown at: `compose` reads one pixel for each that it paints,
    and would skip those between."""
    shown = composer.size / composer.cells
    return emoji.resize(cutouts, max(side for side in (16, 32, 64) if side == 16 or side < 2 * shown))


@dataclasses.dataclass(frozen=True)
class EmojiScenes:
    """Scenes of the emoji pack: each training drawing once per epoch, the others of its scene at random."""

    composer: Composer = Composer()
    recolour: augment.Augment | None = None  # colours of each object in training; None: the artist's own

    def batches(self, batch_size: int, seed: int, rows: slice = pipeline.ALL) -> pipeline.Batches:
        """`images` uint8 [B s s 3], `masks` bool [B n s s], `boxes` float32 [B n 4], and `label` int32 [B n]: the
        concept's row in the pack, or -1 where no object is present."""
        artists, concepts = emoji.pack().split("train")

        def make(indices: np.ndarray, rng: np.random.Generator, rows: slice) -> pipeline.Batch:
            which = rng.integers(len(concepts), size=(len(indices), self.composer.objects[1]))
            which[:, 0] = indices
            layouts = draw(self.composer, len(indices), rng)
            if self.recolour is not None:
                layouts = recoloured(layouts, self.recolour, rng)
            scene = self._scene(artists[which[rows]], concepts[which[rows]], take(layouts, rows))
            label = np.where(scene.present, concepts[which[rows]], -1).astype(np.int32)
            return {"images": scene.images, "masks": scene.masks, "boxes": scene.boxes, "label": label}

        return pipeline.Batches(len(concepts), batch_size, seed, rows, make)

    def scenes(self, split: str, count: int) -> Scene:
        """`count` scenes of the split's drawings, the same at every call."""
        artists, concepts = emoji.pack().split(split)
        rng = np.random.default_rng((0x5CE4E, emoji.SPLITS.index(split)))
        which = rng.integers(len(concepts), size=(count, self.composer.objects[1]))
        return self._scene(artists[which], concepts[which], draw(self.composer, count, rng))

    def _scene(self, artists: np.ndarray, concepts: np.ndarray, layouts: Layout) -> Scene:
        """artists and concepts [B n]."""
        most = concepts.shape[1]
        cutouts = shrunk(emoji.cutouts(artists.ravel(), concepts.ravel()), self.composer)
        may_flip = np.array([emoji.pack().concepts[n].may_flip for n in concepts.ravel()]).reshape(concepts.shape)
        return compose(rearrange(cutouts, "(b n) h w c -> b n h w c", n=most), layouts, self.composer.size, may_flip)
