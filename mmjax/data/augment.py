"""Augmentation of a whole batch at once: cut-outs with alpha are moved, recoloured and put on a background.

    cut-outs [B S S 4] -sample-> colour [B 3 P] and alpha [B 1 P] -recolour-> -over(background)-> images [B s s 3]

B batch, S source side, s output side, P = s * s output pixels. Images at the boundary are uint8, channels last; inside,
channels come before pixels, so that NumPy's loops run over long rows. Photographs [B S S 3] go the same way: they are
opaque, and their edge pixels continue beyond the frame.

Every random number is in a `Draw`, made for the GLOBAL batch; a process that holds some of the rows takes those rows of
the draw. Sampling is one bilinear read per output pixel, alpha-weighted so that colours of invisible pixels don't leak.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of R, G, B in brightness as seen, ITU-R BT.601
BLOCKS = 8  # a blocky background has BLOCKS x BLOCKS patches
CACHED = 2**15  # output pixels that are worked on at once


@dataclasses.dataclass(frozen=True)
class Augment:
    """How far each property may wander. Lengths are in image sides."""

    scale: tuple[float, float] = (0.7, 1.05)  # size of the cut-out
    shift: float = 0.12  # of its centre, each way
    rotation: float = 12.0  # degrees, each way
    brightness: float = 0.15  # added to all channels, each way
    contrast: float = 0.25  # factor 1 +- this, around mid grey
    saturation: float = 0.4  # factor 1 +- this
    hue: float = 0.06  # turns of the colour circle, each way
    backgrounds: tuple[float, float, float, float] = (0.3, 0.3, 0.2, 0.2)  # shares: white, plain, gradient, blocks


# Photographs are zoomed into and hardly recoloured; their surroundings are part of what captions speak of.
PHOTOGRAPHS = Augment(
    scale=(1.0, 1.3), shift=0.08, rotation=0.0, brightness=0.1, contrast=0.2, saturation=0.3, hue=0.02
)


class Draw(NamedTuple):
    """The random numbers of a batch; row b of each field is for picture b."""

    scale: np.ndarray  # [B]
    shift: np.ndarray  # [B 2] x, y
    angle: np.ndarray  # [B] radians, counter-clockwise
    flip: np.ndarray  # [B] bool
    colour: np.ndarray  # [B 3 3] acts on (R, G, B)
    offset: np.ndarray  # [B 3] added after `colour`, in [-1, 1]
    paints: np.ndarray  # [B 2 3] the background's two colours
    mix: np.ndarray  # [B K K] blend of the two, as a coarse grid that is stretched to the picture


def draw(config: Augment, batch_size: int, rng: np.random.Generator) -> Draw:
    """Random numbers for `batch_size` pictures; `flip` is true for half of them."""
    colour, offset = colour_jitter(config, batch_size, rng)
    paints, mix = backgrounds(config, batch_size, rng)
    return Draw(
        scale=rng.uniform(*config.scale, batch_size).astype(np.float32),
        shift=rng.uniform(-config.shift, config.shift, (batch_size, 2)).astype(np.float32),
        angle=np.deg2rad(rng.uniform(-config.rotation, config.rotation, batch_size)).astype(np.float32),
        flip=rng.random(batch_size) < 0.5,
        colour=colour,
        offset=offset,
        paints=paints,
        mix=mix,
    )


def still(batch_size: int, background: int = 255) -> Draw:
    """The draw that changes nothing: for evals, on a plain grey `background` (255 is white)."""
    return Draw(
        scale=np.ones(batch_size, np.float32),
        shift=np.zeros((batch_size, 2), np.float32),
        angle=np.zeros(batch_size, np.float32),
        flip=np.zeros(batch_size, bool),
        colour=np.tile(np.eye(3, dtype=np.float32), (batch_size, 1, 1)),
        offset=np.zeros((batch_size, 3), np.float32),
        paints=np.full((batch_size, 2, 3), background / 255, np.float32),
        mix=np.zeros((batch_size, 1, 1), np.float32),
    )


def take(draws: Draw, rows: slice | np.ndarray) -> Draw:
    """The draw of some rows."""
    return Draw(*(field[rows] for field in draws))


def colour_jitter(config: Augment, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hue, saturation, contrast and brightness as one affine map of colour: [B 3 3] and [B 3].

    Hue turns colours about the grey axis, which keeps R + G + B and is close to a turn of HSV's circle.
    """
    turn = 2 * np.pi * rng.uniform(-config.hue, config.hue, batch_size)
    saturation, contrast = (1 + rng.uniform(-x, x, (batch_size, 1, 1)) for x in (config.saturation, config.contrast))
    brightness = rng.uniform(-config.brightness, config.brightness, (batch_size, 1))
    grey = np.full((3, 3), 1 / 3)  # projection on the grey axis
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # cross product with it (Rodrigues)
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    hue = cos * np.eye(3) + sin * across + (1 - cos) * grey
    saturate = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), LUMA)
    matrix = contrast * (saturate @ hue)
    offset = (1 - contrast[..., 0]) / 2 + brightness
    return matrix.astype(np.float32), np.repeat(offset, 3, 1).astype(np.float32)


def backgrounds(config: Augment, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours [B 2 3] and a blend of them [B K K]: white, plain, a gradient, or blocks."""
    kind = rng.choice(4, batch_size, p=np.asarray(config.backgrounds) / np.sum(config.backgrounds))
    paints = rng.random((batch_size, 2, 3), dtype=np.float32)
    paints[kind == 0] = 1.0
    blocks = rng.random((batch_size, BLOCKS, BLOCKS), dtype=np.float32)
    direction = 2 * np.pi * rng.random((batch_size, 1, 1), dtype=np.float32)
    along = np.linspace(-0.5, 0.5, BLOCKS, dtype=np.float32)
    # In [0, 1] in every direction: |cos + sin| <= sqrt(2).
    gradient = 0.5 + 0.7 * (np.cos(direction) * along + np.sin(direction) * along[:, None])  # [B K K]
    kind = kind[:, None, None]
    return paints, np.where(kind == 2, gradient, np.where(kind == 3, blocks, 0.0)).astype(np.float32)


def render(cutouts: np.ndarray, draws: Draw, size: int, may_flip: np.ndarray | bool = True) -> np.ndarray:
    """Cut-outs [B S S 4] or photographs [B S S 3], uint8 -> images [B size size 3] uint8.

    `may_flip` [B] bool: whether the mirror image still means the same (an arrow's doesn't).
    """
    grounds = draws.paints[:, None], draws.mix[:, None]
    return render_on(cutouts, draws._replace(flip=draws.flip & may_flip), *grounds, size)[:, 0]


def render_on(cutouts: np.ndarray, draws: Draw, paints: np.ndarray, mix: np.ndarray, size: int) -> np.ndarray:
    """Each picture on V backgrounds of its own, paints [B V 2 3] and mix [B V K K], instead of the one in `draws`:
    [B V size size 3] uint8."""
    images = np.empty((*paints.shape[:2], size, size, 3), np.uint8)
    few = max(1, CACHED // size**2)  # a few pictures at a time stay in the processor's cache: 2.5 times faster
    for rows in (slice(first, first + few) for first in range(0, len(cutouts), few)):
        mine = take(draws, rows)
        colour, alpha = sample(framed(cutouts[rows]), *source_points(mine, cutouts.shape[1], size))
        colour = np.clip(mine.colour @ colour + mine.offset[:, :, None] * alpha, 0, alpha)
        for v in range(paints.shape[1]):
            canvas = colour + (1 - alpha) * background(paints[rows, v], mix[rows, v], size)  # [B 3 P]
            pixels = (255 * canvas + 0.5).astype(np.uint8)  # canvas is in [0, 1]: adding a half rounds
            images[rows, v] = pixels.transpose(0, 2, 1).reshape(-1, size, size, 3)
    return images


def plain(cutouts: np.ndarray, size: int, background: int = 255) -> np.ndarray:
    """[B S S 4] uint8 -> [B size size 3] uint8 on a plain background, unchanged otherwise."""
    return render(cutouts, still(len(cutouts), background), size)


def source_points(draws: Draw, source: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each output pixel reads: x and y [B P] in source pixels, 0 = centre of the first."""
    centres = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5)[None]
    u = np.tile(centres, (1, size)) - draws.shift[:, :1]  # [B P]
    v = np.repeat(centres, size, 1) - draws.shift[:, 1:]
    # The inverse of "mirror, turn, scale, shift"; y points down, so a counter-clockwise turn has this sign.
    cos, sin = (f(draws.angle)[:, None] / draws.scale[:, None] for f in (np.cos, np.sin))
    x = (cos * u - sin * v) * np.where(draws.flip, -1, 1)[:, None].astype(np.float32)
    y = sin * u + cos * v
    return (x + 0.5) * source - 0.5, (y + 0.5) * source - 0.5


def framed(cutouts: np.ndarray) -> np.ndarray:
    """[B S S 3|4] -> [B S+2 S+2] as packed little-endian RGBA, with a frame of one pixel.

    A cut-out's frame is transparent; a photograph's repeats its edge. With it, reads beyond the picture can be clamped.
    """
    batch, side, _, channels = cutouts.shape
    packed = np.zeros((batch, side + 2, side + 2, 4), np.uint8)
    packed[:, 1:-1, 1:-1, :channels] = cutouts
    if channels == 3:
        packed[..., 3] = 255
        packed[:, 0], packed[:, -1] = packed[:, 1], packed[:, -2]
        packed[:, :, 0], packed[:, :, -1] = packed[:, :, 1], packed[:, :, -2]
    return packed.view("<u4")[..., 0]


def sample(packed: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear reads of `framed` pictures at x, y [B P]: premultiplied colour [B 3 P] and alpha [B 1 P], in [0, 1]."""
    batch, side = packed.shape[:2]
    x, y = (np.clip(axis + 1, 0, side - 1.001) for axis in (x, y))  # +1 for the frame
    left, top = x.astype(np.int32), y.astype(np.int32)
    x, y = x - left.astype(np.float32), y - top.astype(np.float32)
    corner = np.arange(batch, dtype=np.int32)[:, None] * side**2 + top * side + left
    colour = np.zeros((batch, 3, x.shape[1]), np.float32)
    alpha = np.zeros((batch, 1, x.shape[1]), np.float32)
    reads = {0: (1 - x) * (1 - y), 1: x * (1 - y), side: (1 - x) * y, side + 1: x * y}
    for step, weight in reads.items():
        pixels = packed.ravel().take(corner + step)
        weight *= (pixels >> 24).astype(np.float32)  # alpha is the highest byte
        alpha[:, 0] += weight
        for channel in range(3):
            colour[:, channel] += weight * ((pixels >> 8 * channel) & 255).astype(np.float32)
    return colour / 255**2, np.minimum(alpha / 255, 1)  # rounding may leave alpha a hair above 1


def background(paints: np.ndarray, mix: np.ndarray, size: int) -> np.ndarray:
    """Colours [B 2 3] and their coarse blend [B K K], stretched to size x size by repetition: [B 3 P]."""
    cell = np.arange(size) * mix.shape[1] // size
    mix = mix[:, cell][:, :, cell].reshape(len(mix), 1, -1)  # [B 1 P]
    first, second = paints[:, 0, :, None], paints[:, 1, :, None]
    return first + mix * (second - first)
