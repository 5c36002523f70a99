"""Files of sound: what is read of them, and one clear sentence for each thing that can be wrong."""

import sys
import warnings

import numpy as np
import pytest

from mmjax.data import sound

RATE = 8_000
RNG = np.random.default_rng(0)


def tone(hertz=440.0, seconds=0.25, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile", reason="needs the [audio] extra")


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'mmjax\[audio\]'"):
        sound.read(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize(("ending", "near"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.05), (".opus", 0.1)])
def test_what_is_written_is_read(soundfile, tmp_path, ending, near):
    path = tmp_path / f"a{ending}"
    sound.write(path, tone(), RATE)
    back = sound.read(path, RATE)
    assert back.dtype == np.float32
    assert abs(len(back) - 2000) < 50
    np.testing.assert_allclose(back[200:1800], tone()[200:1800], atol=near)


def test_stereo_at_another_rate_is_one_channel_at_ours(soundfile, tmp_path):
    left, right = tone(440, rate=44_100), tone(880, rate=44_100)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    found = sound.read(tmp_path / "a.wav", RATE)
    assert len(found) == 2000
    np.testing.assert_allclose(found[99:-99], ((tone() + tone(880)) / 2)[99:-99], atol=2e-3)


def test_a_clipped_recording_is_read_with_a_warning(soundfile, tmp_path):
    soundfile.write(tmp_path / "a.wav", (4 * tone()).clip(-1, 1), RATE)
    with pytest.warns(UserWarning, match=r"a\.wav is clipped: \d+ of 2000 samples stand at full scale; record it"):
        assert len(sound.read(tmp_path / "a.wav", RATE)) == 2000
    one = np.stack([(4 * tone()).clip(-1, 1), 0.1 * tone()], 1)
    soundfile.write(tmp_path / "one.wav", one, RATE)
    with pytest.warns(UserWarning, match=r"one\.wav is clipped"):
        sound.read(tmp_path / "one.wav", RATE)
    soundfile.write(tmp_path / "b.wav", tone() / 0.5, RATE)  # reaches full scale, and turns round there
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound.read(tmp_path / "b.wav", RATE)


def test_what_is_wrong_with_a_file_is_said(soundfile, tmp_path):
    def refused(name, message):
        with pytest.raises(ValueError, match=message):
            sound.read(tmp_path / name, RATE)

    with pytest.raises(FileNotFoundError, match=r"no sound file .*none\.wav"):
        sound.read(tmp_path / "none.wav", RATE)
    (tmp_path / "bytes.wav").write_bytes(b"")
    refused("bytes.wav", "holds no bytes")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    refused("empty.wav", "holds no samples")
    soundfile.write(tmp_path / "silent.wav", np.zeros(100, np.float32), RATE)
    refused("silent.wav", r"is silent: its peak is 0\.0e\+00")
    soundfile.write(tmp_path / "cancel.wav", np.stack([tone(), -tone()], 1), RATE, subtype="FLOAT")
    refused("cancel.wav", "channels cancel each other out")
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(100) == 7, np.nan, 0.1), RATE, subtype="FLOAT")
    refused("nan.wav", "1 of 100 samples are NaN or infinite, the first is number 7")
    for name in ("cut.wav", "cut.flac"):
        sound.write(tmp_path / name, RNG.uniform(-0.5, 0.5, 9000), RATE)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        refused(name, "is cut short|can't be read as sound: .* the file is damaged")
    (tmp_path / "a.wav").write_text("not a sound")
    refused("a.wav", "can't be read as sound: .* the file is damaged")
    (tmp_path / "a.wma").write_text("not a sound")
    refused("a.wma", r"known endings are \.wav, \.flac, .*; convert it")


@pytest.mark.parametrize(
    ("wave", "name", "message"),
    [
        (np.zeros((2, 9)), "a.wav", r"one wave \[S\], got \[2, 9\]"),
        (np.array([0.0, 1.5]), "a.wav", r"got 2 of them from 0 to 1\.5; divide it by its peak"),
        (np.array([0.0, np.nan]), "a.wav", "from nan to nan"),
        (np.zeros(0), "a.wav", "got 0 of them"),
        (np.zeros(9), "a.xyz", "should end in one of"),
    ],
)
def test_what_is_no_sound_is_not_written(soundfile, tmp_path, wave, name, message):
    with pytest.raises(ValueError, match=message):
        sound.write(tmp_path / name, wave, RATE)
    assert not (tmp_path / name).exists()
