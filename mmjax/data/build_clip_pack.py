"""Build the embedded clip pack: Microsoft's animated emoji as eight small frames each.

    python -m mmjax.data.build_clip_pack --downloads DIR

The npm package is fetched into DIR if it is not there (165 MB). A clip is taken if it moves and is of a concept of the
emoji pack; flags and families with children are not in that, nor are skin tones. Of its frames, FRAMES are taken at
equal distances in time, laid on white, and averaged down to SIZE pixels. Colours are rounded to 52 a channel, 5 apart:
48 dB, and 0.9 MB instead of 1.4; WebP that loses something of its own halves the colours' resolution: 29 dB.
"""

import argparse
import io
import json
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from mmjax.data import build_emoji_pack, clips, emoji

PACKAGE = "@lobehub/fluent-emoji-anim-1"
FRAMES, SIZE = 8, 32
SPACING = 5  # between colours


def small(data: bytes) -> np.ndarray | None:
    """An animated WebP -> uint8 [FRAMES SIZE SIZE 3]; None if it stands still."""
    picture = Image.open(io.BytesIO(data))
    count = getattr(picture, "n_frames", 1)
    if count < FRAMES:
        return None
    found = []
    for n in range(FRAMES):
        picture.seek(n * count // FRAMES)
        pixels = np.asarray(picture.convert("RGBA"), np.float32)
        alpha = pixels[..., 3:] / 255
        block = len(pixels) // SIZE
        on_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
        found.append(on_white.reshape(SIZE, block, SIZE, block, 3).mean((1, 3)))
    return (SPACING * np.round(np.stack(found) / SPACING)).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--downloads", type=Path, required=True, help="folder of the npm tarball")
    options = parser.parse_args()
    files = build_emoji_pack.read(options.downloads, PACKAGE, r"assets/.*\.webp")
    by_code = {build_emoji_pack.code_key(PurePath(name).stem): data for name, data in files.items()}
    found = {}
    for concept in emoji.pack().concepts:
        data = by_code.get(build_emoji_pack.code_key(concept.code))
        frames = small(data) if data else None
        if frames is not None:
            found[concept.code] = frames
    atlas = clips.to_atlas(np.stack(list(found.values())))
    Image.fromarray(atlas).save(clips.ATLAS, "WEBP", lossless=True, quality=100, method=6)
    clips.INDEX.write_text(json.dumps(list(found)) + "\n")
    print(f"{len(files)} files, {len(found)} clips, {clips.ATLAS.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
