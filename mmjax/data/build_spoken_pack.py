"""Build the embedded spoken pack: one-word names of the emoji pack, said by three voices of eSpeak NG.

    pip install espeakng-loader==0.2.4 && python -m mmjax.data.build_spoken_pack

The wheel holds the library of eSpeak NG 1.52 and its data; both are called through ctypes, nothing is installed. A word
is said if it is the whole name of a concept and at least ARTISTS of the pack's eight artists draw that concept, so that
there are many pictures of it; held-out concepts too. Silence around it is cut off, the peak is made PEAK.

File: `mmjax.data.spoken` says how waves become bytes. Here they become them, and are compared with what comes back.
"""

import argparse
import ctypes
import json
import lzma
import re

import numpy as np

from mmjax.data import emoji, spoken

WORDS_A_MINUTE = 150
ARTISTS = 7  # who draw a concept, at least
SMALL = 100  # training concepts of the small vocabulary
SMALL_GROUPS = ("Animals & Nature", "Food & Drink")
PEAK = 0.7
QUIET = 0.003  # of the peak: silence
SYNCHRONOUS, RATE = 2, 1  # numbers of espeak_AUDIO_OUTPUT and espeak_PARAMETER in speak_lib.h


class Speaker:
    """The library, ready to speak."""

    def __init__(self):
        import espeakng_loader  # only needed to build the pack

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise SystemExit(f"eSpeak NG found no data in {espeakng_loader.get_data_path()}")
        self.pieces = []

        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        def hear(samples, count, _):
            if samples and count > 0:
                self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self.hear = hear  # the library calls it for as long as it lives
        self.library.espeak_SetSynthCallback(hear)

    def say(self, text: str, voice: str) -> np.ndarray:  # int16 [S]
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise SystemExit(f"eSpeak NG has no voice {voice}")
        self.library.espeak_SetParameter(RATE, WORDS_A_MINUTE, 0)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the breath in a voice: the same bytes each time
        self.pieces.clear()
        data = text.encode() + b"\0"
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, 1, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.pieces)


def chosen() -> tuple[list[int], list[int]]:
    """Rows of the emoji pack that are said, and those of the small vocabulary."""
    pack = emoji.pack()
    held_out = set(pack.split("concepts")[1].tolist())
    trained = set(pack.split("train")[1].tolist()) - held_out
    words = [
        n
        for n, concept in enumerate(pack.concepts)
        if re.fullmatch("[a-z]+", concept.name) and len(concept.artists) >= ARTISTS and n in trained | held_out
    ]
    groups = [n for n in words if pack.concepts[n].group in SMALL_GROUPS]
    order = sorted(set(groups) & trained, key=lambda n: emoji.fraction("small", pack.concepts[n].code))
    return words, sorted([*order[:SMALL], *(set(groups) & held_out)])


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """int16 at `rate` -> float32 [S] at the pack's, without the silence around it."""
    from scipy.signal import resample_poly

    common = np.gcd(rate, spoken.RATE)
    wave = resample_poly(samples.astype(np.float64), spoken.RATE // common, rate // common)
    loud = np.abs(wave) > QUIET * np.abs(wave).max()
    wave = wave[loud.argmax() : len(wave) - loud[::-1].argmax()]
    return (PEAK * wave / np.abs(wave).max()).astype(np.float32)


def encoded(waves: list[np.ndarray]) -> np.ndarray:
    """Each wave in whole hops, one more than it fills -> int8 [R HOP]."""
    transform, rows = spoken.basis(), []
    for wave in waves:
        hops = spoken.hops(len(wave))
        padded = np.zeros((hops + 1) * spoken.HOP)
        padded[spoken.HOP : spoken.HOP + len(wave)] = wave
        halves = padded.reshape(-1, spoken.HOP)
        found = np.concatenate([halves[:-1], halves[1:]], 1) @ transform
        rows.append(np.sign(found) * np.round((np.abs(found) / spoken.STEP) ** spoken.POWER))
    found = np.concatenate(rows)
    if np.abs(found).max() > 127:
        raise SystemExit(f"a coefficient is {np.abs(found).max()}, which int8 doesn't hold; a larger STEP")
    return found.astype(np.int8)


def packed(head: dict, rows: np.ndarray) -> bytes:
    """Header and int8 rows as the file's bytes."""
    head = json.dumps(head, separators=(",", ":")).encode()
    data = len(head).to_bytes(4, "little") + head + rows.tobytes()
    return lzma.compress(data, lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "pb": 0}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    speaker = Speaker()
    words, small = chosen()
    pack = emoji.pack()
    waves = [trimmed(speaker.say(pack.names[n], voice), speaker.rate) for voice in spoken.ESPEAK for n in words]
    head = {
        "codes": [pack.concepts[n].code for n in words],
        "small": [int(n in small) for n in words],
        "lengths": [len(wave) for wave in waves],
    }
    data = packed(head, encoded(waves))
    spoken.ASSET.write_bytes(data)
    back = spoken.read(spoken.ASSET)
    error = sum(np.square(wave - x[: len(wave)]).sum() for wave, x in zip(waves, back.waves, strict=True))
    ratio = 10 * np.log10(sum(np.square(wave).sum() for wave in waves) / error)
    seconds = sum(map(len, waves)) / spoken.RATE
    print(f"{len(words)} words, {len(small)} small, {seconds:.0f} s, {len(data) / 1e6:.2f} MB, {ratio:.1f} dB")


if __name__ == "__main__":
    main()
