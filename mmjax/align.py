"""How alike are two representations? What `mmjax align A B` does: features from wherever they are, scores, null, table.

    A, B: FILE.npz:KEY, FILE.npy, FILE.pt of platonic-rep, a run or a Hugging Face folder :image or :text, FILE.gguf
    -features-> layers L x [N D] -evals.platonic-> rows of length 1 -evals.platonic_null-> scores, p-values, notes

Pictures of --data are cut for all encoders as OpenAI's CLIP does: the shorter side resized to the model's image size,
bicubic, the middle cut out. That is not what others were trained on, and moves their scores unless pictures are square:
SigLIP and ViT squeeze the whole picture to a square (ViT bilinearly), DINOv2 resizes to 256 and cuts out 224 whatever
its grid. For exact features of those, make them with pictures prepared as their folder says, and give the .npy.

N rows, the same things in the same order on both sides; L layers, D width, T tokens.
"""

import argparse
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mmjax.data import emoji, folder
from mmjax.evals import layers, platonic, platonic_null, platonic_official
from mmjax.models import bert, clip
from mmjax.ops import hsic
from mmjax.ops import images as image_ops
from mmjax.text import clip_bpe, language, wordpiece
from mmjax.weights import torch_file

CAPTIONS = "captions.jsonl"
BUCKET = 8  # texts are padded to a multiple of it


class Data(NamedTuple):
    """What encoders are shown."""

    texts: list[str]  # N
    pictures: Callable[[int], np.ndarray]  # side in pixels -> uint8 [N side side 3], cut as for CLIP


def data_of(name: str) -> Data:
    """emoji:SPLIT of the embedded pack, or a folder with pictures and captions.jsonl; one caption for each picture."""
    if name.startswith("emoji:"):
        pairs = emoji.EmojiData(emoji.SIZE).pairs(name.removeprefix("emoji:"))

        def drawn(side: int) -> np.ndarray:
            if emoji.SIZE % side == 0:
                return emoji.EmojiData(side).pairs(name.removeprefix("emoji:")).images
            return np.stack([np.asarray(image_ops.cover(image, side)) for image in pairs.images])

        return Data(list(pairs.captions), drawn)
    if not Path(name).is_dir():
        raise FileNotFoundError(
            f"--data {name} is no folder; give one with pictures and {CAPTIONS}, or emoji:SPLIT with a split of "
            f"{', '.join(emoji.SPLITS)}"
        )
    first = {}
    for line, picture, caption in folder.read_captions(Path(name) / CAPTIONS, "image", "text"):
        first.setdefault(picture, (line, caption))

    def read(side: int) -> np.ndarray:
        return np.stack([folder.read_picture(Path(name), p, CAPTIONS, line, side) for p, (line, _) in first.items()])

    return Data([caption for _, caption in first.values()], read)


# Features of one side: [N D], [N L D] or a list of [N D]


def features_of(source: str, data: Data | None) -> Any:
    """source: PATH or PATH:KEY. ValueError and FileNotFoundError say what is there and what is wanted."""
    path, key = _split(source)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a file of features, a run folder or a folder of weights")
    if path.is_dir() or path.suffix == ".gguf":
        if data is None:
            raise ValueError(f"{source} is an encoder and needs something to read; add --data FOLDER or emoji:SPLIT")
        return _encoded(path, key, data)
    arrays = _arrays(path)
    keys = _keys(arrays)
    if not key and len(keys) != 1:
        choice = f"say which: {', '.join(f'{path}:{one}' for one in keys)}" if keys else "features are [N D] or [N L D]"
        raise ValueError(f"{path} holds {len(keys)} arrays of numbers; {choice}")
    key = key or keys[0]
    if key in arrays:
        return _checked(source, arrays[key])
    parts = [name for name in arrays if _stem(name) == key]
    if not parts:
        raise ValueError(f"{path} has no array {key!r}; it has {', '.join(keys)}")
    parts.sort(key=lambda name: int(name.split("/")[-1]))
    return [_checked(f"{path}:{name}", arrays[name]) for name in parts]


def _split(source: str) -> tuple[Path, str]:
    """A path may hold a colon itself; then what is behind the last one is a key only if the whole does not exist."""
    before, colon, key = source.rpartition(":")
    return (Path(before), key) if colon and not Path(source).exists() else (Path(source), "")


def _stem(name: str) -> str:
    """Arrays image/0, image/1 ... are the layers of "image"."""
    return re.sub(r"/\d+$", "", name)


def _keys(arrays: dict[str, np.ndarray]) -> list[str]:
    """Names of what may be features."""
    return list(dict.fromkeys(_stem(name) for name, one in arrays.items() if _is_number(one)))


def _is_number(x: np.ndarray) -> bool:
    return x.dtype.kind in "fiu" or x.dtype.name == "bfloat16"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".pt":
        return torch_file.read(path)
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(f"{path} is no file of features that can be read; give .npz, .npy, .pt or .gguf")
    try:
        found = np.load(path, allow_pickle=False)
        return {name: found[name] for name in found} if path.suffix == ".npz" else {"features": found}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} can't be read ({error}); write numbers with np.save or np.savez") from error


def _checked(source: str, x: np.ndarray) -> np.ndarray:
    if not _is_number(x):
        raise ValueError(f"{source} holds {x.dtype}, but features are numbers")
    if x.ndim not in (2, 3):
        raise ValueError(
            f"{source} has the shape {list(x.shape)}; features are [N D], or [N L D] with a row for each thing"
        )
    x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise ValueError(f"{source}: {len(bad)} of {len(x)} rows hold NaN or infinity, the first is row {bad[0]}")
    return x


def _encoded(path: Path, key: str, data: Data) -> np.ndarray:
    """[N L D]: all blocks of an encoder."""
    model, variables, tokenize = _loaded(path)
    can = layers.reads(model)
    key = key or (can[0] if len(can) == 1 else "")
    if key not in can:
        wanted = " or ".join(f"{path}:{one}" for one in can) or "another folder"
        raise ValueError(f"{path} holds a {type(model).__name__}; give {wanted}, got {key or 'neither'}")
    if key == "text":
        return layers.of_texts(model, variables, tokenize(data.texts))
    tower = getattr(model.config, "vision", model.config)
    colours = model.config if hasattr(model.config, "image_mean") else tower
    pixels = data.pictures(tower.image_size).astype(np.float32) / 255
    return layers.of_images(model, variables, (pixels - np.float32(colours.image_mean)) / np.float32(colours.image_std))


def _loaded(path: Path) -> tuple[nn.Module, Any, Callable[[list[str]], dict]]:
    """The model of a run, of a Hugging Face folder or of a GGUF file, its variables and its tokenizer."""
    from mmjax import weights
    from mmjax.train import checkpoint, run_folder

    if path.is_file():
        speech = weights.load_language(path)
        model, variables = weights.load_gguf(path)
        return model, variables, lambda texts: _padded(speech, model, texts)
    if run_folder.is_run(path):
        experiment = run_folder.rebuild(path)
        variables = checkpoint.load_variables(path, experiment.task.serve)
        return experiment.task.model, variables, experiment.data.tokenize
    model, variables = weights.load_hf(path)
    return model, variables, lambda texts: _rows(path, model, texts)


def _rows(path: Path, model: nn.Module, texts: list[str]) -> dict[str, np.ndarray]:
    """What the tokenizer of a Hugging Face folder makes of texts."""
    if isinstance(model, clip.CLIP):
        return clip_bpe.load(path).rows(texts, model.config.text.length)
    if hasattr(type(model), "encode_image"):
        raise ValueError(f"{path} holds a {type(model).__name__}, whose tokenizer is not read here; give :image")
    if isinstance(model, bert.BERT):
        tokenizer = wordpiece.load(path)
        longest = max(len(ids) + 2 for ids in tokenizer.encode(texts))
        return tokenizer.rows(texts, min(-(-longest // BUCKET) * BUCKET, model.config.length))
    return _padded(language.from_folder(path), model, texts)


def _padded(speech: language.Language, model: nn.Module, texts: list[str]) -> dict[str, np.ndarray]:
    """input_ids and attention_mask [N T], padded on the right, cut to what the model can read."""
    ids = [one.ids or [0] for one in speech.core.encode_batch(texts)]
    longest = -(-max(map(len, ids)) // BUCKET) * BUCKET
    length = min(longest, getattr(model.config, "length", None) or longest)
    rows = np.zeros((len(ids), length), np.int32)
    mask = np.zeros((len(ids), length), bool)
    for row, found in enumerate(ids):
        rows[row, : len(found)] = found[:length]
        mask[row, : len(found)] = True
    return {"input_ids": rows, "attention_mask": mask}


# The command


def run(asked: argparse.Namespace) -> str:
    """The table and the notes below it."""
    data = data_of(asked.data) if asked.data else None
    found = [features_of(source, data) for source in (asked.a, asked.b)]
    raw = [platonic.layers_of(one) for one in found]
    counts = [len(side[0]) for side in raw]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{asked.a} has {counts[0]} rows and {asked.b} has {counts[1]}; row i must be the same thing on both sides"
        )
    _check_numbers(asked, counts[0])
    if asked.layers == "last":
        found = [side[-1] for side in raw]
    kind = platonic_official if asked.official else platonic
    prepare = partial(platonic_official.prepare, exact=False) if asked.official else platonic.prepare
    x, y = (prepare(one, asked.clamp) for one in found)
    least = counts[0] // 2 if asked.intervals else counts[0]  # rows that are measured at once
    metrics = _chosen(kind.metrics(asked.k, min(10, least - 1, *(one.shape[1] for one in (*x, *y)))), asked.metrics)
    rng, subsamples = jax.random.split(jax.random.key(asked.seed))
    orders = platonic_null.orders(rng, counts[0], asked.permutations)
    sides = (y, x) if asked.official else (x, y)  # the original hands its second side to the search first
    rows = platonic_null.measure(metrics, *sides, orders, best=kind.best)
    intervals = [_interval(row, *sides, subsamples, asked.intervals) for row in rows] if asked.intervals else None
    rows = [_turned(row) for row in rows] if asked.official else rows
    heads = [_head(name, side) for name, side in ((f"x  {asked.a}", x), (f"y  {asked.b}", y))]
    settings = (
        f"   the {asked.clamp:.0%} smallest values {'of a row, on average, ' * asked.official}stay, larger ones are "
        "clamped; rows have length 1; "
        f"{asked.permutations} permutations, seed {asked.seed}{'; official quirks' if asked.official else ''}"
    )
    notes = [f"note: {line}" for line in platonic_null.warnings(x, y, asked.k)]
    return "\n".join([*heads, settings, "", *table(rows, intervals), *notes])


def _check_numbers(asked: argparse.Namespace, count: int) -> None:
    if count <= 4:
        raise ValueError(f"{count} rows are too few to compare; give at least 5")
    if not 2 <= asked.k < count:
        raise ValueError(f"--k must be from 2 to {count - 1}, one less than the rows, got {asked.k}")
    if asked.permutations < 1:
        raise ValueError(f"--permutations must be at least 1, got {asked.permutations}")
    if asked.intervals < 0 or asked.intervals == 1:
        raise ValueError(f"--intervals must be 0 for none, or at least 2 draws, got {asked.intervals}")
    if asked.intervals and count // 2 < max(asked.k + 1, hsic.LEAST):
        raise ValueError(
            f"--intervals measures halves of the rows: those of {count} have {count // 2}, and must have at least "
            f"{hsic.LEAST} and more than --k, got {asked.k}; take more rows, a smaller --k or --intervals 0"
        )


def _chosen(metrics: tuple, names: str) -> list[platonic.Metric]:
    if not names:
        return list(metrics)
    known = {metric.name.split("@")[0]: metric for metric in metrics}
    asked = [name.strip() for name in names.split(",")]
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"no metric {', '.join(unknown)}; there are {', '.join(known)}")
    return [metric for name, metric in known.items() if name in asked]


def _interval(row: platonic_null.Calibrated, x: list, y: list, rng: jax.Array, draws: int) -> tuple[float, float]:
    i, j = row.pair or (-1, -1)
    return platonic_null.interval(row.metric, x[i], y[j], rng, draws=draws)


def _turned(row: platonic_null.Calibrated) -> platonic_null.Calibrated:
    return row._replace(scores=row.scores.T, pair=row.pair and row.pair[::-1])


def _head(name: str, side: list[jax.Array]) -> str:
    widths = sorted({one.shape[1] for one in side})
    width = f"widths {widths[0]} to {widths[-1]}" if len(widths) > 1 else f"width {widths[0]}"
    return f"{name}: {side[0].shape[0]} rows, {len(side)} layer{'s' * (len(side) > 1)} of {width}"


def table(rows: list[platonic_null.Calibrated], intervals: list[tuple[float, float]] | None = None) -> list[str]:
    """A line for each metric under a line of heads; layers count from 0."""
    heads = ("metric", "score", "layers", "last", "null", "null 95%", "p", "calibrated")
    cells = [heads + (("95% interval",) if intervals else ())]
    for i, row in enumerate(rows):
        pair = "none" if row.pair is None else f"{row.pair[0]}, {row.pair[1]}"
        numbers = [f"{value:.3f}" for value in (row.last, float(row.null.mean()), row.threshold, row.p, row.calibrated)]
        line = (row.metric.name, f"{row.score:.3f}", pair, *numbers)
        cells.append(line + ((f"{intervals[i][0]:.3f} to {intervals[i][1]:.3f}",) if intervals else ()))
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True))])
        for row in cells
    ]
