"""Pictures of what a model does: pure functions, arrays in, [H W 3] uint8 out, drawn with Pillow.

A right answer has a green frame and a tick, so that nobody needs to tell colours apart.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINE = (255, 255, 255), (31, 35, 40), (110, 119, 129), (216, 222, 228)
RIGHT = (17, 128, 70)
OTHERS = (150, 155, 160)
# Okabe and Ito's colours, which the colour-blind can tell apart; black is left out because it is the ink.
CATEGORIES = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (213, 94, 0), (176, 164, 18), (120, 94, 240),
)  # fmt: skip
THUMB, GAP, TEXT = 76, 8, 15  # pixels


class Row(NamedTuple):
    """A query and its answers, best first."""

    query: str
    images: np.ndarray  # [K H W 3] uint8
    right: np.ndarray  # [K] bool


class Tile(NamedTuple):
    """An image above a few lines about it."""

    image: np.ndarray  # [H W 3] uint8
    lines: Sequence[str]
    right: Sequence[bool]  # which lines are right


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans is there wherever mmjax is, and draws Latin, Greek and Cyrillic

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def fit(text: str, width: float, size: int = TEXT, bold: bool = False) -> str:
    """`text` on one line of at most `width` pixels, cut with an ellipsis."""
    text, measure = " ".join(text.split()), font(size, bold).getlength
    if measure(text) <= width:
        return text
    while text and measure(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def thumbnail(image: np.ndarray, size: int) -> Image.Image:
    """[H W 3] uint8 -> a square of `size` pixels, the image centred on white."""
    picture = Image.fromarray(np.asarray(image, np.uint8))
    scale = size / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), PAPER)
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """[H W 3] -> [H+h W 3]: a line above the picture that says how to read it."""
    sheet, draw = canvas(picture.shape[1], TEXT + 2 * GAP)
    draw.text((GAP, GAP), fit(text, picture.shape[1] - 2 * GAP), FAINT, font(TEXT))
    return np.concatenate([np.asarray(sheet), picture])


def tick(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """A white tick on a green disc whose upper right corner is (x, y)."""
    draw.ellipse((x - 18, y, x, y + 18), fill=RIGHT, outline=PAPER)
    draw.text((x - 9, y + 9), "✓", PAPER, font(13, bold=True), anchor="mm")


def gallery(rows: Sequence[Row], columns: int = 2) -> np.ndarray:
    """Queries in `columns`, each above its images from best to worst."""
    shown = max(len(row.images) for row in rows)
    width, height = shown * (THUMB + GAP) + 2 * GAP, TEXT + THUMB + 4 * GAP
    sheet, draw = canvas(columns * width, -(-len(rows) // columns) * height + GAP)
    for n, row in enumerate(rows):
        left, top = n % columns * width + GAP, n // columns * height + GAP
        draw.text((left, top), fit(row.query, width - 3 * GAP, bold=True), INK, font(TEXT, bold=True))
        for k, (image, right) in enumerate(zip(row.images, row.right, strict=True)):
            x, y = left + k * (THUMB + GAP), top + TEXT + GAP
            sheet.paste(thumbnail(image, THUMB), (x, y))
            frame = (x - 2, y - 2, x + THUMB + 1, y + THUMB + 1)
            draw.rounded_rectangle(frame, 4, outline=RIGHT if right else LINE, width=3 if right else 1)
            if right:
                tick(draw, x + THUMB - 2, y + 2)
    return np.asarray(sheet)


def tiles(items: Sequence[Tile], columns: int = 6) -> np.ndarray:
    """Images in a grid, each above its lines; right lines are green and ticked."""
    columns = min(columns, len(items))
    width, lines = 2 * THUMB + 2 * GAP, max(len(item.lines) for item in items)
    height = THUMB + lines * (TEXT + 4) + 3 * GAP
    sheet, draw = canvas(columns * width, -(-len(items) // columns) * height + GAP)
    for n, item in enumerate(items):
        left, top = n % columns * width + GAP, n // columns * height + GAP
        sheet.paste(thumbnail(item.image, THUMB), (left, top))
        for k, (line, right) in enumerate(zip(item.lines, item.right, strict=True)):
            text, at = ("✓ " if right else "") + line, (left, top + THUMB + GAP + k * (TEXT + 4))
            draw.text(at, fit(text, width - 2 * GAP, TEXT - 2, right), RIGHT if right else FAINT, font(TEXT - 2, right))
    return np.asarray(sheet)


def heat(values: np.ndarray) -> np.ndarray:
    """[R C] -> [R C 3] uint8: viridis from the lowest value to the highest; grey where not a number."""
    import matplotlib

    values = np.asarray(values, np.float64)
    good = values[np.isfinite(values)]
    low, high = (good.min(), good.max()) if good.size else (0.0, 0.0)
    colours = matplotlib.colormaps["viridis"]((values - low) / max(high - low, 1e-12))[..., :3]
    return np.where(np.isfinite(values)[..., None], colours * 255, 160).round().astype(np.uint8)


def enlarged(values: np.ndarray, size: int) -> np.ndarray:
    """[h w ...] -> [size size ...]: each value as a block, since what lies between two patches is not known."""
    rows, columns = (np.arange(size) * side // size for side in values.shape[:2])
    return values[rows][:, columns]


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], size: int = THUMB) -> np.ndarray:
    """Images [h w 3] uint8 in rows, all drawn as large, each column under its title."""
    width = size + GAP
    sheet, draw = canvas(len(titles) * width + GAP, TEXT + 2 * GAP + len(rows) * width)
    for c, title in enumerate(titles):
        draw.text((GAP + c * width, GAP), fit(title, size, TEXT - 3), FAINT, font(TEXT - 3))
        for r, row in enumerate(rows):
            sheet.paste(Image.fromarray(enlarged(row[c], size)), (GAP + c * width, TEXT + 2 * GAP + r * width))
    return np.asarray(sheet)


def matrix(scores: np.ndarray, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """scores [R C] of images [R H W 3] against C names. The best of each row is ringed, and ticked on the diagonal."""
    cell, margin = 46, 150
    rows, columns = scores.shape
    left, top = cell + 2 * GAP, margin
    # Slanted names reach to the right of their column.
    sheet, draw = canvas(left + columns * cell + margin, top + rows * cell + GAP)
    for c, name in enumerate(names):
        slant(sheet, fit(name, margin * 1.25, TEXT - 2), (left + c * cell + cell // 2, top - 6))
    colours = heat(scores)
    for r in range(rows):
        sheet.paste(thumbnail(images[r], cell - 6), (GAP, top + r * cell + 3))
        for c in range(columns):
            x, y = left + c * cell, top + r * cell
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=tuple(map(int, colours[r, c])))
            ink = PAPER if colours[r, c].mean() < 128 else INK
            best = scores[r, c] == scores[r].max()
            text = "n/a" if np.isnan(scores[r, c]) else f"{scores[r, c]:.2f}"
            draw.text((x + cell / 2 - 1, y + cell / 2 - 1), text, ink, font(12, best), anchor="mm")
            if best:
                draw.rectangle((x, y, x + cell - 2, y + cell - 2), outline=(255, 80, 60), width=3)
    return np.asarray(sheet)


def slant(sheet: Image.Image, text: str, at: tuple[int, int]) -> None:
    """Draws `text` upwards at 45 degrees, starting at `at`."""
    face = font(TEXT - 2)
    length = round(face.getlength(text)) + 4
    label = Image.new("L", (2 * length, 2 * length))
    ImageDraw.Draw(label).text((length, length), text, 255, face, anchor="ls")
    label = label.rotate(45, Image.Resampling.BICUBIC)  # about its middle, where the text starts
    sheet.paste(INK, (at[0] - length, at[1] - length), label)


def scatter(points: np.ndarray, images: np.ndarray, groups: Sequence[str], coloured: int) -> np.ndarray:
    """points [N 2]; images [N H W 3] drawn there, framed by the colour of their group, and a legend.

    The `coloured` most frequent groups get a colour. Images that would hide another become dots.
    """
    side, pad, thumb, legend = 900, 30, 40, 210
    most = [name for name, _ in Counter(groups).most_common(min(coloured, len(CATEGORIES)))]
    colours = {**dict.fromkeys(groups, OTHERS), **dict(zip(most, CATEGORIES, strict=False)), "others": OTHERS}
    low, high = np.nanpercentile(points, [0.5, 99.5], axis=0)
    place = pad + np.clip((points - low) / np.maximum(high - low, 1e-12), 0, 1) * (side - 2 * pad)
    place[:, 1] = side - place[:, 1]  # up is up

    sheet, draw = canvas(side + legend, side)
    taken: set[tuple[int, int]] = set()
    drawn = []
    for n in np.flatnonzero(np.isfinite(place).all(axis=1)):
        x, y = map(int, place[n])
        if (x // thumb, y // thumb) not in taken:
            taken.add((x // thumb, y // thumb))
            drawn.append(n)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colours[groups[n]])
    for n in drawn:
        x, y = (place[n] // thumb * thumb).astype(int)
        sheet.paste(thumbnail(images[n], thumb - 8), (x + 4, y + 4))
        draw.rounded_rectangle((x + 2, y + 2, x + thumb - 3, y + thumb - 3), 4, outline=colours[groups[n]], width=3)
    for n, name in enumerate([*most, "others"]):
        y = pad + n * 28
        draw.ellipse((side + 10, y, side + 26, y + 16), fill=colours[name])
        draw.text((side + 36, y - 1), fit(name, legend - 40), INK, font(TEXT))
    return np.asarray(sheet)
