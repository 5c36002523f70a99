"""The spoken pack: what is in it, that voices and words can be told apart, and what training reads of it."""

import dataclasses

import numpy as np
import pytest

from mmjax.data import build_spoken_pack as build
from mmjax.data import emoji, spoken

PACK = spoken.pack()
DATA = spoken.SpokenData()
VOICE = [np.flatnonzero(PACK.voice == n) for n in range(3)]


def bands(waves: np.ndarray, frames: int = 24) -> np.ndarray:
    """Rough spectra of whole words: log energy of `frames` equal parts in 20 bands, without the mean: [N frames*20]."""
    found = []
    for wave in waves:
        parts = np.stack([wave[start : start + 256] for start in np.linspace(0, len(wave) - 256, frames).astype(int)])
        power = np.square(np.abs(np.fft.rfft(parts * np.hanning(256))))[:, 1:121]
        found.append(np.log(power.reshape(frames, 20, 6).sum(-1) + 1e-3))
    found = np.stack(found)
    return (found - found.mean((1, 2), keepdims=True)).reshape(len(waves), -1)


def cut(rows: np.ndarray) -> list[np.ndarray]:
    return [PACK.waves[n, : PACK.lengths[n]] for n in rows]


def pitch(wave: np.ndarray) -> float:
    """Hz, where the loudest 64 ms repeat themselves best, between 70 and 320 Hz."""
    best = max(range(0, len(wave) - 512, 128), key=lambda start: np.square(wave[start : start + 512]).sum())
    part = wave[best : best + 512]
    again = np.correlate(part, part, "full")[511:]
    lags = np.arange(8000 // 320, 8000 // 70)
    return 8000 / lags[(again[lags] / (512 - lags)).argmax()]


def test_what_is_in_it():
    assert PACK.waves.shape[0] == 3 * 334 == len(PACK.lengths)
    assert PACK.waves.dtype == np.float32
    assert all(len(rows) == 334 for rows in VOICE)
    for rows in VOICE[1:]:
        np.testing.assert_array_equal(PACK.concept[rows], PACK.concept[VOICE[0]])
    words, small = build.chosen()
    np.testing.assert_array_equal(PACK.concept[VOICE[0]], words)
    np.testing.assert_array_equal(np.flatnonzero(PACK.small[VOICE[0]]), np.searchsorted(words, small))
    assert {"fox", "strawberry", "rocket", "dog"} <= set(PACK.words)
    sizes = {split: len(PACK.split(split)) for split in spoken.SPLITS}
    assert sizes == {"train": 626, "concepts": 42, "voice": 313, "voice_concepts": 21}
    assert len(np.unique(np.concatenate([PACK.split(split) for split in spoken.SPLITS]))) == 1002
    assert len(set(PACK.concept[PACK.split("train")]) & set(emoji.pack().split("concepts")[1])) == 0
    assert PACK.small[PACK.split("train")].sum() == 2 * build.SMALL
    with pytest.raises(ValueError, match="no split 'test' of the spoken pack; there are train, "):
        PACK.split("test")
    with pytest.raises(ValueError, match="read-only"):
        PACK.waves[0] = 0


def test_words_are_words():
    seconds = PACK.lengths / spoken.RATE
    assert seconds.min() > 0.2
    assert seconds.max() < 1.1
    assert 0.45 < np.median(seconds) < 0.65
    for rows in VOICE:
        waves = cut(rows)
        assert np.abs([np.abs(x).max() - build.PEAK for x in waves]).max() < 0.05
        assert min(np.square(x).mean() for x in waves) > 1e-3  # none is silent
    after = np.arange(PACK.waves.shape[1]) >= PACK.lengths[:, None]
    np.testing.assert_array_equal(PACK.waves[after], 0)


def test_voices_differ_and_words_stay():
    man, woman, scot = (np.median([pitch(x) for x in cut(rows)[::4]]) for rows in VOICE)
    print(f"pitch: {man:.0f}, {woman:.0f}, {scot:.0f} Hz")
    assert woman > 1.4 * man
    assert 1.4 * man < scot < 0.9 * woman
    features = [bands(cut(rows)) for rows in VOICE]
    for one, other, share in ((0, 1, 0.6), (0, 2, 0.45), (1, 2, 0.55)):
        x, y = features[one], features[other]
        away = (np.square(x).sum(1)[:, None] - 2 * x @ y.T + np.square(y).sum(1)) / x.shape[1]
        nearest = (away.argmin(1) == np.arange(334)).mean()
        print(
            f"{one} {other}: same word {np.diag(away).mean():.2f}, two words {away.mean():.2f}, nearest {nearest:.2f}"
        )
        assert np.diag(away).mean() < 0.65 * away.mean()
        assert nearest > share  # of 334 words, by chance 0.003


def test_bytes_come_back_as_the_wave(tmp_path):
    rng = np.random.default_rng(0)
    waves = [np.cumsum(rng.normal(size=n)).astype(np.float32) for n in (300, 256, 1)]
    waves = [x / np.abs(x).max() / 2 for x in waves]
    found = build.encoded(waves)
    assert found.shape == (sum(map(spoken.hops, (300, 256, 1))), spoken.HOP)
    codes = [concept.code for concept in emoji.pack().concepts[:3]]
    (tmp_path / "pack.xz").write_bytes(
        build.packed({"codes": codes, "small": [1, 0, 1], "lengths": [300, 256, 1]}, found)
    )
    back = spoken.read(tmp_path / "pack.xz")
    for wave, x, length in zip(waves, back.waves, back.lengths, strict=True):
        assert np.abs(x[:length] - wave).max() < 0.04
        assert (x[length:] == 0).all()
    np.testing.assert_array_equal(back.small, [True, False, True])
    np.testing.assert_array_equal(back.concept, [0, 1, 2])


@pytest.mark.parametrize("small", [False, True])
def test_a_process_gets_its_rows_of_the_same_batch(small):
    data = dataclasses.replace(DATA, small=small, kinds=("concept", "subgroup", "voice"))
    whole, part = data.batches(6, seed=3)[5], data.batches(6, seed=3, rows=slice(2, 5))[5]
    assert {name: (x.shape, x.dtype.name) for name, x in whole.items()} == {
        "waves": ((6, 8000), "float32"),
        "lengths": ((6,), "int32"),
        "label": ((6, 3), "int32"),
    }
    for name, x in whole.items():
        np.testing.assert_array_equal(part[name], x[2:5])
        assert data.batches(6, seed=3)[5][name].tobytes() == x.tobytes()
    assert data.batches(6, seed=4)[5]["waves"].tobytes() != whole["waves"].tobytes()
    assert data.counts == (1555, 95, 2)


def test_an_epoch_holds_each_training_recording_once():
    data = dataclasses.replace(DATA, kinds=("concept", "voice"), augmentation=spoken.Augment(0.0, 0.0))
    batches, train = data.batches(313, seed=0), PACK.split("train")
    labels = np.concatenate([batches[n]["label"] for n in range(2)])
    np.testing.assert_array_equal(
        np.unique(labels, axis=0), np.unique(np.stack([PACK.concept, PACK.voice], 1)[train], axis=0)
    )
    batch = batches[0]
    row = {(c, v): n for n, (c, v) in enumerate(zip(PACK.concept, PACK.voice, strict=True))}
    first = []
    for wave, end, label in zip(batch["waves"], batch["lengths"], batch["label"], strict=True):
        n = row[tuple(label)]
        length = min(PACK.lengths[n], 8000)
        np.testing.assert_array_equal(wave[end - length : end], PACK.waves[n, :length])  # moved, not changed
        first.append(end - length)
    assert np.std(first) > 500


def test_gain_and_noise_stay_within_what_was_asked():
    clean = dataclasses.replace(DATA, augmentation=spoken.Augment(0.0, 0.0)).batches(64, seed=1)[0]["waves"]
    loud = dataclasses.replace(DATA, augmentation=spoken.Augment(6.0, 0.0)).batches(64, seed=1)[0]["waves"]
    gain = 20 * np.log10(np.abs(loud).max(1) / np.abs(clean).max(1))
    assert -6.01 < gain.min() < -4
    assert 2 < gain.max() < 6.01
    noise = dataclasses.replace(DATA, augmentation=spoken.Augment(0.0, 0.01)).batches(64, seed=1)[0]["waves"] - clean
    assert 0.008 < noise.std(1).max() < 0.0105
    assert noise.std(1).min() < 0.003


def test_evals_get_words_as_they_are():
    found = spoken.SpokenData(small=True, kinds=("voice", "concept")).recordings("voice_concepts")
    assert sorted(found.words) == ["candy", "crab", "dog", "fish", "mouse", "mushroom", "rat"]
    assert spoken.SpokenData(kinds=("voice",)).label(found).tolist() == [[-1]] * 7  # nobody learns from it
    np.testing.assert_array_equal(
        found.lengths, PACK.take(PACK.split("voice_concepts")).lengths[PACK.small[PACK.split("voice_concepts")]]
    )
