"""Files of sound to waves and back, through `soundfile`: WAV, FLAC, Ogg (Vorbis, Opus), MP3.

    read(path, rate) -> float32 [S]        one channel at `rate` Hz, whatever the file holds
    write(path, wave, rate)

`soundfile` is the optional extra `audio`; nothing else of mmjax needs it. What can't be a sound is a ValueError that
says what came: empty, cut short, silent, not finite. A clipped recording is read, with a warning: it is damaged, and
only its maker can mend that.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif")
SILENT = 1e-4  # -80 dB of full scale: what never is above it is silence
CLIPPED = 0.001  # share of samples at full scale, three or more in a row, from which on there is a warning


def library() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            "files of sound are read and written by soundfile, which isn't installed: pip install 'mmjax[audio]'"
        ) from error
    return soundfile


def read(path: str | Path, rate: int) -> np.ndarray:
    """float32 [S] in [-1, 1] at `rate` Hz: the mean of the channels, resampled (scipy.signal.resample_poly)."""
    path, soundfile = Path(path), library()
    if not path.is_file():
        raise FileNotFoundError(f"there is no sound file {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} holds no bytes; replace the file")
    try:
        with soundfile.SoundFile(path) as file:
            promised, source = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        known = path.suffix.lower() in FORMATS
        hint = "the file is damaged" if known else f"known endings are {', '.join(FORMATS)}; convert it, e.g. to WAV"
        raise ValueError(f"{path} can't be read as sound: {error.error_string.strip()} {hint}") from error
    if len(samples) < promised or _cut_short(path):
        raise ValueError(
            f"{path} is cut short: its header promises more than the {len(samples)} samples that came; copy it again"
        )
    return resampled(checked(samples, str(path)), source, rate)


def checked(samples: np.ndarray, name: str) -> np.ndarray:
    """[S C], if it is a sound -> the mean of the channels [S]."""
    count = len(samples)
    if not count:
        raise ValueError(f"{name} holds no samples; replace the file")
    wrong = np.flatnonzero(~np.isfinite(samples).all(1))
    if len(wrong):
        raise ValueError(
            f"{name}: {len(wrong)} of {count} samples are NaN or infinite, the first is number {wrong[0]}; "
            "write it again from a sound that is finite"
        )
    peak = np.abs(samples).max()
    if peak < SILENT:
        raise ValueError(f"{name} is silent: its peak is {peak:.1e} of full scale; record it again, or leave it out")
    full = np.abs(samples) >= 0.999
    clipped = (full[:-2] & full[1:-1] & full[2:]).any(1).sum()
    if clipped > CLIPPED * count:
        warnings.warn(
            f"{name} is clipped: {clipped} of {count} samples stand at full scale; record it at a lower level",
            stacklevel=3,
        )
    wave = samples.mean(1)
    if np.abs(wave).max() < SILENT:
        raise ValueError(f"{name}: its channels cancel each other out, their mean is silent; save one of them alone")
    return wave


def resampled(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    """float32 [S] at `old` Hz -> [ceil(S * new / old)] at `new` Hz, cut to [-1, 1]; as ops/audio.py's `resample`."""
    if old != new:
        from scipy.signal import resample_poly

        common = np.gcd(old, new)
        wave = resample_poly(wave, new // common, old // common)
    return np.clip(wave, -1, 1).astype(np.float32)


def write(path: str | Path, wave: Any, rate: int) -> None:
    """float [S] in [-1, 1] -> the file that `path` ends like; WAV and FLAC with 16 bits. Louder than 1 is an error."""
    path, soundfile, wave = Path(path), library(), np.asarray(wave, np.float32)
    if wave.ndim != 1:
        raise ValueError(
            f"a sound to write is one wave [S], got {list(wave.shape)}; write the rows of a batch one by one"
        )
    if not len(wave) or not np.isfinite(wave).all() or np.abs(wave).max() > 1:
        raise ValueError(
            f"a sound to write to {path} has samples in [-1, 1], got {len(wave)} of them"
            + (f" from {wave.min():.3g} to {wave.max():.3g}; divide it by its peak" if len(wave) else "")
        )
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} should end in one of {', '.join(FORMATS)}")
    how = {"format": "OGG", "subtype": "OPUS"} if path.suffix.lower() == ".opus" else {}
    soundfile.write(path, wave, rate, **how)


def _cut_short(path: Path) -> bool:
    """Whether a WAV file is shorter than its header says: libsndfile takes what there is and says nothing."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return False
    promised = int.from_bytes(head[4:8], "little")
    return promised != 0xFFFFFFFF and path.stat().st_size < promised + 8  # a stream of unknown length writes all ones
