"""Your own sounds and clips: a folder of files with one file of captions, or the stamps of Tux Paint.

    my_sounds/captions.jsonl   {"sound": "animals/dog.wav", "text": "a dog barks"}     or .csv, .tsv with a header
    my_clips/captions.csv      clip,text \n run.webp,a man runs

    sounds(folder) -> Item rows with waves         clips(folder) -> with frames: animated WebP, GIF or PNG

Captions are read as `folder.py` reads those of pictures, with its errors. Tux Paint's stamps (Debian package
tuxpaint-stamps-default, GPL-2; it is read where you installed it) are a picture, a caption in many languages, and in
about twenty of these the caption spoken:

    stamps("/usr/share/tuxpaint/stamps") -> Stamp(picture, captions, spoken, effect) of paths, by path
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmjax.data import folder as folders
from mmjax.data import sound
from mmjax.ops import images as image_ops

TUX_PAINT = "apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb FOLDER"


class Captioned(NamedTuple):
    """N different files and what is said of them."""

    arrays: list[np.ndarray]  # N waves [S] float32, or clips [T s s 3] uint8
    file: np.ndarray  # [R] row of `arrays`
    texts: list[str]  # R
    validation: np.ndarray  # [R] bool, by a hash of the file's name


def sounds(
    folder: str | Path, rate: int = 8_000, captions: str = "captions.jsonl", column: str = "sound", share: float = 0.1
) -> Captioned:
    """Each file that `captions` names, as one channel at `rate` Hz."""
    return _captioned(Path(folder), captions, column, share, lambda path: sound.read(path, rate))


def clips(
    folder: str | Path, frames: int = 8, size: int = 32, captions: str = "captions.jsonl", column: str = "clip",
    share: float = 0.1,
) -> Captioned:  # fmt: skip
    """Each animated WebP, GIF or PNG that `captions` names: `frames` at equal distances, the middle square."""
    return _captioned(Path(folder), captions, column, share, lambda path: read_clip(path, frames, size))


def _captioned(folder: Path, captions: str, column: str, share: float, read) -> Captioned:
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is no folder; give one with files and {captions}")
    if not (folder / captions).is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise FileNotFoundError(
            f"no captions at {folder / captions}; name the file, captions=...; the folder has {there}"
        )
    rows = folders.read_captions(folder / captions, column, "text", wanted=f"Rows have the columns {column} and text")
    names = list(dict.fromkeys(name for _, name, _ in rows))
    if len(names) < 2:
        raise ValueError(
            f"{folder / captions} names {len(names)} files; at least 2 are needed, to train and to validate"
        )
    first = {name: line for line, name, _ in reversed(rows)}
    arrays = []
    for name in names:
        try:
            arrays.append(read(folder / name))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{folder / captions}, line {first[name]}: {error}") from error
    file = np.array([names.index(name) for _, name, _ in rows])
    return Captioned(arrays, file, [text for _, _, text in rows], folders.by_hash(names, share)[file])


def read_clip(path: Path, frames: int, size: int) -> np.ndarray:
    """uint8 [frames size size 3] of an animated picture; at least as many frames as are asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no clip {path}")
    try:
        with Image.open(path) as picture:
            count, found = getattr(picture, "n_frames", 1), []
            for n in range(frames if count >= frames else 0):
                picture.seek(n * count // frames)
                found.append(np.asarray(image_ops.cover(image_ops.shown(picture), size)))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(
            f"{path} can't be read as an animated picture ({error}); films become one with "
            "ffmpeg -i FILM -vf fps=8,scale=64:-1 CLIP.webp"
        ) from error
    if not found:
        raise ValueError(f"{path} has {count} frames, {frames} are asked for; leave it out, or ask for fewer")
    return np.stack(found)


# Tux Paint


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Paths of a stamp's files; what is spoken says the caption of the same language, or only its noun."""

    picture: Path  # .png or .svg
    captions: dict[str, str]  # language -> sentence; "en" is always there
    spoken: dict[str, Path]  # language -> recording
    effect: Path | None  # the sound that the thing makes


def stamps(root: str | Path, symbols: bool = False) -> list[Stamp]:
    """All stamps with a caption below `root`, by path; letters and other symbols only if asked for."""
    root = Path(root)
    inside = root / "usr/share/tuxpaint/stamps"  # as the package is unpacked
    root = inside if inside.is_dir() else root
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of stamps at {str(root)!r}; to get one: {TUX_PAINT}")
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    found = []
    for name, path in files.items():
        stem = name.rsplit(".", 1)[0]
        words = files.get(f"{stem}.txt")
        if not name.endswith((".png", ".svg")) or not words or (name.startswith("symbols/") and not symbols):
            continue
        captions = read_words(words)
        if captions:
            recordings = {"en": _sound(files, f"{stem}_desc")}
            recordings |= {
                language: _sound(files, f"{stem}_desc_{language}") for language in captions if language != "en"
            }
            spoken = {language: one for language, one in recordings.items() if one}
            found.append(Stamp(path, captions, spoken, _sound(files, stem)))
    if not found:
        raise ValueError(
            f"{root} holds no picture with a caption of its name (cat.png, cat.txt); to get some: {TUX_PAINT}"
        )
    return found


def _sound(files: dict[str, Path], stem: str) -> Path | None:
    return next((files[stem + ending] for ending in (".ogg", ".wav") if stem + ending in files), None)


def read_words(path: Path) -> dict[str, str]:
    """A stamp's text: its first line is English, others are LANGUAGE.utf8=SENTENCE."""
    lines = folders.read_utf8(path).splitlines()
    if not lines or not lines[0].strip():
        return {}
    captions = {"en": lines[0].strip()}
    for line in lines[1:]:
        match = re.fullmatch(r"([\w@]+)\.utf8=(.+)", line.strip())
        if match:
            captions.setdefault(match[1], match[2].strip())
    return captions
