"""Multi-crop: views of each picture, two large and several small, as DINO and DINOv2 augment them.

    pictures [B S S 3] -resized crop, flip-> -jitter, grey, blur, solarise-> global [B 2 s s 3], local [B n s s 3]

Source: Caron et al. 2020, arXiv:2006.09882, section 3.3, with the numbers of facebookresearch/dino, main_dino.py, and
facebookresearch/dinov2, data/augmentations.py; only the second global view is solarised.

B batch, S source side, s side of a view, V = 2 + n views, P = s * s pixels. Images at the boundary are uint8, channels
last; inside they are float32 [B 3 P] in [0, 1] from the crop to the end, where the originals round to bytes after each
operation. Every random number is in a `Draw`, made for the GLOBAL batch; a process takes its rows of it.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from einops import rearrange

from mmjax.data.augment import LUMA

TRIES = 10  # for a crop that fits, before all of the picture is taken (torchvision's RandomResizedCrop)
RATIO = (3 / 4, 4 / 3)  # width / height of a crop
THRESHOLD = 128 / 255  # solarising inverts what is at least as bright


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Which views; the defaults are DINO's."""

    global_size: int = 224
    local_size: int = 96
    local_count: int = 8  # n
    global_scale: tuple[float, float] = (0.4, 1.0)  # of the picture's area
    local_scale: tuple[float, float] = (0.05, 0.4)
    jitter: float = 0.8  # probability that colours change, by at most:
    brightness: float = 0.4  # factor 1 +- this
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # turns of the colour circle, each way
    grey: float = 0.2  # probability
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # probabilities of the two global views and of the local ones
    radius: tuple[float, float] = (0.1, 2.0)  # of the blur: deviation in pixels of a view of its published size
    solarise: float = 0.2  # probability of the second global view
    published: tuple[int, int] = (224, 96)  # sides of global and local views that the blur's pixels are meant for
    reaches: float = 4.0  # where the blur is cut off, in its largest deviations
    edges: str = "edge"  # what the blur sees beyond them: they repeat, or np.pad's "reflect"

    @property
    def views(self) -> int:  # V
        return 2 + self.local_count

    def reach(self, size: int, published: int) -> int:
        """How many pixels away a blurred view of this size looks: the same for all rows, whoever renders them."""
        return max(1, math.ceil(self.reaches * self.radius[1] * size / published))


def dinov2(**changes) -> MultiCrop:
    """DINOv2's views: crops are split at another share of the area, local ones hold 7 x 7 patches of 14 pixels.

    Its blur has 9 x 9 pixels (data/transforms.py), and chances that were meant as DINO's but are taken for those of no
    blur, so that the first global view is never blurred and the second nearly always: released models saw it so.
    """
    blur = {"blur": (0.0, 0.9, 0.5), "published": (224, 98), "reaches": 2.0, "edges": "reflect"}
    crops = {"local_size": 98, "global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32)}
    return MultiCrop(**{**crops, **blur, **changes})


def small() -> MultiCrop:
    """For drawings of 64 pixels, seen at 32 and 16: not published."""
    return MultiCrop(32, 16, local_count=2, global_scale=(0.5, 1.0), local_scale=(0.2, 0.6), solarise=0.0)


class Draw(NamedTuple):
    """The random numbers of a batch; views in the order global, global, local ..."""

    crop: np.ndarray  # [B V 4] left, top, width, height in source pixels, int
    flip: np.ndarray  # [B V] bool
    jitter: np.ndarray  # [B V] bool: whether the next two apply
    order: np.ndarray  # [B V 4] in which brightness, contrast, saturation and hue (0 to 3) change
    amount: np.ndarray  # [B V 4] their factors; of hue, turns
    grey: np.ndarray  # [B V] bool
    sigma: np.ndarray  # [B V] deviation of the blur in output pixels; 0 is none
    solarise: np.ndarray  # [B V] bool


def draw(config: MultiCrop, batch_size: int, side: int, rng: np.random.Generator) -> Draw:
    """Random numbers for `batch_size` pictures of `side` pixels."""
    shape = (batch_size, config.views)
    few = np.arange(config.views) < 2  # the global ones
    scale = np.where(few, *(np.array(x)[:, None] for x in (config.global_scale, config.local_scale)))  # [2 V]
    blur = np.array([*config.blur[:2], *[config.blur[2]] * config.local_count])
    shrunk = np.where(few, config.global_size / config.published[0], config.local_size / config.published[1])
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    return Draw(
        crop=crops(scale, shape, side, rng),
        flip=rng.random(shape) < 0.5,
        jitter=rng.random(shape) < config.jitter,
        order=np.argsort(rng.random((*shape, 4)), axis=-1),
        amount=([1, 1, 1, 0] + spread * rng.uniform(-1, 1, (*shape, 4))).astype(np.float32),
        grey=rng.random(shape) < config.grey,
        sigma=((rng.random(shape) < blur) * rng.uniform(*config.radius, shape) * shrunk).astype(np.float32),
        solarise=(rng.random(shape) < config.solarise) & (np.arange(config.views) == 1),
    )


def crops(scale: np.ndarray, shape: tuple[int, int], side: int, rng: np.random.Generator) -> np.ndarray:
    """scale [2 V] lowest and highest share of the area -> [B V 4] left, top, width, height of crops that fit."""
    tries = (*shape, TRIES)
    area = side**2 * rng.uniform(*scale[..., None], tries)
    ratio = np.exp(rng.uniform(*np.log(RATIO), tries))
    width, height = (np.rint(np.sqrt(x)).astype(int) for x in (area * ratio, area / ratio))
    fits = (np.minimum(width, height) > 0) & (np.maximum(width, height) <= side)
    first = fits.argmax(-1)[..., None]
    width, height = (
        np.where(fits.any(-1), np.take_along_axis(x, first, -1)[..., 0], side) for x in (width, height)
    )  # fmt: skip
    left, top = (np.floor(rng.random(shape) * (side - x + 1)).astype(int) for x in (width, height))
    return np.stack([left, top, width, height], -1)


def take(draws: Draw, rows: slice | np.ndarray) -> Draw:
    """The draw of some rows."""
    return Draw(*(field[rows] for field in draws))


def render(pictures: np.ndarray, draws: Draw, config: MultiCrop) -> dict[str, np.ndarray]:
    """Pictures [B S S 3] uint8, or one for each view [B V S S 3] -> {"global_crops": [B 2 s s 3], "local_crops":
    [B n s s 3]} uint8."""
    parts = {"global_crops": (slice(0, 2), config.global_size), "local_crops": (slice(2, None), config.local_size)}
    found = {}
    source = rearrange(pictures, "b ... h w c -> b ... c h w").astype(np.float32) / 255
    own = pictures.ndim == 5
    for name, (views, size) in parts.items():
        mine = Draw(*(field[:, views] for field in draws))
        if mine.flip.size:
            reach = config.reach(size, config.published[name == "local_crops"])
            each = [Draw(*(field[:, v] for field in mine)) for v in range(mine.flip.shape[1])]
            seen = [source[:, views][:, v] if own else source for v in range(len(each))]
            how = size, reach, config.edges
            found[name] = np.stack([view(x, one, *how) for x, one in zip(seen, each, strict=True)], axis=1)
    return found


def view(source: np.ndarray, draws: Draw, size: int, reach: int, edges: str = "edge") -> np.ndarray:
    """One view of each picture [B 3 S S] float -> [B size size 3] uint8. Fields of `draws` are [B ...]."""
    x = rearrange(resized_crop(source, draws.crop, draws.flip, size), "b c h w -> b c (h w)")
    jitter(x, draws)
    x[draws.grey] = luma(x[draws.grey])
    blurred = draws.sigma > 0
    if blurred.any():
        image = rearrange(x[blurred], "b c (h w) -> b c h w", h=size)
        x[blurred] = rearrange(blur(image, draws.sigma[blurred], reach, edges), "b c h w -> b c (h w)")
    bright = draws.solarise[:, None, None] & (x >= THRESHOLD)
    x = np.where(bright, 1 - x, x)
    return rearrange((255 * x + 0.5).astype(np.uint8), "b c (h w) -> b h w c", h=size)


def resized_crop(source: np.ndarray, crop: np.ndarray, flip: np.ndarray, size: int) -> np.ndarray:
    """[B 3 S S], crop [B 4] -> [B 3 size size] in [0, 1]: Pillow's bicubic with antialias, mirrored where `flip`."""
    left, top, width, height = crop.T
    across, down = (
        weights(start, length, size, source.shape[-1]) for start, length in ((left, width), (top, height))
    )  # fmt: skip
    across = np.where(flip[:, None, None], across[:, ::-1], across)
    narrow = source @ rearrange(across, "b s t -> b 1 t s")
    return np.clip(rearrange(down, "b s t -> b 1 s t") @ narrow, 0, 1)


def weights(start: np.ndarray, length: np.ndarray, size: int, side: int) -> np.ndarray:
    """[B], [B] -> [B size side]: how much of each source pixel is in each pixel of the resized piece.

    Keys' cubic with a = -0.5, as wide as the step from pixel to pixel of the output; nothing beyond the crop is read.
    """
    start, length = start[:, None, None].astype(np.float32), length[:, None, None].astype(np.float32)
    step = length / size
    source = np.arange(side, dtype=np.float32) - start + np.float32(0.5)  # centres, from where the crop starts
    output = (np.arange(size, dtype=np.float32)[:, None] + np.float32(0.5)) * step
    x = np.abs(source - output) / np.maximum(step, 1)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0)) * ((source > 0) & (source < length))
    return kernel / kernel.sum(-1, keepdims=True)


def luma(x: np.ndarray) -> np.ndarray:  # [B 3 P] -> [B 1 P]
    return np.einsum("c,bcp->bp", LUMA, x)[:, None]


def brighten(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """torchvision's ColorJitter, like the three that follow: [B 3 P], [B 1 1] -> [B 3 P]."""
    return np.clip(factor * x, 0, 1)


def contrast(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    middle = luma(x).mean(-1, keepdims=True)
    return np.clip(middle + factor * (x - middle), 0, 1)


def saturate(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    grey = luma(x)
    return np.clip(grey + factor * (x - grey), 0, 1)


def turn_hue(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Value and saturation of HSV stay, hue moves by `turns` of the circle."""
    red, green, blue = (x[:, c] for c in range(3))
    value, least = x.max(1), x.min(1)
    chroma = value - least
    safe = np.where(chroma > 0, chroma, 1)
    sixth = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )  # [B P] hue in sixths of the circle
    # Each channel is `value` over a third of the circle, and falls by `chroma` in the sixth on either side of it.
    k = (np.array([5, 3, 1], np.float32)[:, None] + (sixth + 6 * turns[:, 0])[:, None]) % 6
    return value[:, None] - chroma[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1)


OPERATIONS = (brighten, contrast, saturate, turn_hue)  # numbered as in Draw.order


def jitter(x: np.ndarray, draws: Draw) -> None:
    """Changes the colours of [B 3 P] in place, each picture's in its own order."""
    for turn in range(len(OPERATIONS)):
        for number, operation in enumerate(OPERATIONS):
            rows = np.flatnonzero(draws.jitter & (draws.order[:, turn] == number))
            if rows.size:
                x[rows] = operation(x[rows], draws.amount[rows, number][:, None, None])


def blur(x: np.ndarray, sigma: np.ndarray, reach: int, edges: str = "edge") -> np.ndarray:
    """[B 3 h w], sigma [B] > 0 -> Gaussian blur, cut off beyond `reach` pixels; edges: np.pad's mode."""
    offsets = np.arange(-reach, reach + 1, dtype=np.float32)
    kernel = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    for axis in (2, 3):
        padded = np.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(4)], mode=edges)
        length = x.shape[axis]
        x = sum(
            kernel[:, i, None, None, None] * np.take(padded, np.arange(i, i + length), axis=axis)
            for i in range(2 * reach + 1)
        )
    return x
