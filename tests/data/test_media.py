"""Folders of sounds, of clips and of Tux Paint's stamps: what comes out, and what is said of what is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax.data import media, sound


def write(folder, rows):
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


@pytest.fixture
def sounds(tmp_path):
    pytest.importorskip("soundfile", reason="needs the [audio] extra")
    rows = []
    for n in range(6):
        sound.write(tmp_path / f"{n}.wav", 0.5 * np.sin(np.arange(100 + n) * (n + 1) / 9), 8_000)
        rows.append({"sound": f"{n}.wav", "text": f"tone {n}"})
    write(tmp_path, [*rows, {"sound": "2.wav", "text": "tone 2 again"}])
    return tmp_path


def test_sounds_and_captions_belong_together(sounds):
    found = media.sounds(sounds)
    assert [len(x) for x in found.arrays] == [100, 101, 102, 103, 104, 105]
    assert found.texts == [*(f"tone {n}" for n in range(6)), "tone 2 again"]
    np.testing.assert_array_equal(found.file, [0, 1, 2, 3, 4, 5, 2])
    assert found.validation[:6].sum() == 1
    assert found.validation[6] == found.validation[2]
    (sounds / "captions.csv").write_text("sound,text\n3.wav,three\n4.wav,four\n")
    assert media.sounds(sounds, rate=4_000, captions="captions.csv").arrays[0].shape == (52,)


def test_what_is_wrong_with_a_folder_is_said(sounds):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        media.sounds(sounds / "none")
    with pytest.raises(FileNotFoundError, match=r"no captions at .*other\.csv; name the file, captions=\.\.\."):
        media.sounds(sounds, captions="other.csv")
    with pytest.raises(
        ValueError, match=r"no column 'audio', the columns are 'sound', 'text'.*the columns audio and text"
    ):
        media.sounds(sounds, column="audio")
    sound.library().write(sounds / "4.wav", np.zeros(50), 8_000)
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 5: .*4\.wav is silent"):
        media.sounds(sounds)
    (sounds / "1.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.jsonl, line 2: there is no sound file .*1\.wav"):
        media.sounds(sounds)
    write(sounds, [{"sound": "0.wav", "text": "one"}])
    with pytest.raises(ValueError, match="names 1 files; at least 2"):
        media.sounds(sounds)


def test_clips_are_frames_of_animated_pictures(tmp_path):
    frames = [Image.new("RGB", (24, 16), (10 * n, 0, 0)) for n in range(9)]
    for name in ("a.webp", "b.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True, duration=40)
    rows = [{"clip": name, "text": name} for name in ("a.webp", "b.png")]
    write(tmp_path, rows)
    for clip in media.clips(tmp_path, frames=4, size=8).arrays:
        assert clip.shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(clip[:, 3, 3, 0], [0, 20, 40, 60])
    with pytest.raises(ValueError, match=r"line 1: .*a\.webp has 9 frames, 12 are asked for"):
        media.clips(tmp_path, frames=12)
    (tmp_path / "b.png").write_text("a film")
    with pytest.raises(ValueError, match=r"b\.png can't be read as an animated picture .* ffmpeg -i FILM"):
        media.clips(tmp_path)


def test_stamps_have_pictures_captions_and_what_is_spoken(tmp_path):
    root = tmp_path / "usr/share/tuxpaint/stamps"
    files = {
        "animals/horse.png": "",
        "animals/horse.txt": "A horse.\nfr.utf8=Un cheval.\nca@valencia.utf8=Un cavall.\nodd line\n",
        "animals/horse.ogg": "", "animals/horse_desc.ogg": "", "animals/horse_desc_fr.ogg": "",
        "animals/horse_desc_el.ogg": "",  # what it says is not written anywhere
        "animals/seahorse.svg": "", "animals/seahorse.txt": "A seahorse.", "animals/seahorse_desc.wav": "",
        "animals/none.png": "", "animals/blank.png": "", "animals/blank.txt": "\n",
        "symbols/a.png": "", "symbols/a.txt": "A.",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    for start in (tmp_path, root):
        horse, seahorse = media.stamps(start)
        assert horse == media.Stamp(
            root / "animals/horse.png",
            {"en": "A horse.", "fr": "Un cheval.", "ca@valencia": "Un cavall."},
            {"en": root / "animals/horse_desc.ogg", "fr": root / "animals/horse_desc_fr.ogg"},
            root / "animals/horse.ogg",
        )
        assert seahorse.spoken == {"en": root / "animals/seahorse_desc.wav"}
        assert seahorse.effect is None
    assert len(media.stamps(root, symbols=True)) == 3
    with pytest.raises(FileNotFoundError, match="apt-get download tuxpaint-stamps-default"):
        media.stamps(tmp_path / "none")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture with a caption"):
        media.stamps(empty)
