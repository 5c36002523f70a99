"""A folder of captioned pictures: what comes out, and one clear sentence for each thing that can be wrong with it."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from mmjax.data import folder, pipeline
from mmjax.data.folder import FolderData
from mmjax.text import bpe

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (255, 255, 255)}


@pytest.fixture(autouse=True)
def fresh():
    folder.read_folder.cache_clear()


def write(path, rows, name="captions.jsonl", encoding="utf-8"):
    lines = [json.dumps(row, ensure_ascii="\\ud8" in json.dumps(row)) for row in rows]
    (path / name).write_text("\n".join(lines) + "\n", encoding=encoding)


@pytest.fixture
def pictures(tmp_path):
    """Forty files in four colours and odd sizes, in a folder below."""
    (tmp_path / "files").mkdir()
    rows = []
    for i in range(40):
        colour = list(COLOURS)[i % 4]
        name = f"files/{i}.png"
        Image.new("RGB", (11 + i, 17), COLOURS[colour]).save(tmp_path / name)
        rows.append({"image": name, "text": f"a {colour} square, number {i}"})
    write(tmp_path, rows)
    return tmp_path


@pytest.fixture
def data(pictures):
    return FolderData(str(pictures), image_size=16, text_length=16)


def rows_of(path):
    return [json.loads(line) for line in (path / "captions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pictures_and_captions_belong_together(data):
    for split, count in (("train", 36), ("validation", 4)):
        pairs = data.pairs(split)
        assert pairs.images.shape == (count, 16, 16, 3)
        assert len(pairs.captions) == len(pairs.labels) == count
        for image, caption, label in zip(pairs.images, pairs.captions, pairs.labels, strict=True):
            np.testing.assert_array_equal(image, np.broadcast_to(COLOURS[caption.split()[1]], image.shape))
            assert pairs.names[label] == caption


def test_a_batch_is_what_clip_reads(data):
    still = dataclasses.replace(data.augmentation, brightness=0, contrast=0, saturation=0, hue=0)
    batch = dataclasses.replace(data, augmentation=still).batches(6, seed=1)[2]
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "images": ((6, 16, 16, 3), "uint8"),
        "input_ids": ((6, 16), "int32"),
        "attention_mask": ((6, 16), "bool"),
        "label": ((6,), "int32"),
    }
    names = data.pairs("train").names
    for image, ids, label in zip(batch["images"], batch["input_ids"], batch["label"], strict=True):
        caption = data.vocabulary().decode(ids)
        assert caption == names[label]
        np.testing.assert_array_equal(image, np.broadcast_to(COLOURS[caption.split()[1]], image.shape))


def test_rows_of_a_batch_are_those_of_the_global_batch(data):
    whole = data.batches(8, seed=5)[2]
    for rows in (slice(0, 4), slice(4, 8)):
        for name, part in data.batches(8, seed=5, rows=rows)[2].items():
            np.testing.assert_array_equal(part, whole[name][rows])


def test_validation_is_never_trained_on(data):
    batches = data.batches(36, seed=0)
    trained = {data.vocabulary().decode(ids) for i in range(2) for ids in batches[i]["input_ids"]}
    assert trained == set(data.pairs("train").captions)
    assert not trained & set(data.pairs("validation").captions)


def test_validation_does_not_depend_on_the_order_of_rows(data, pictures):
    before = set(data.pairs("validation").captions)
    write(pictures, rows_of(pictures)[::-1])
    folder.read_folder.cache_clear()
    assert set(data.pairs("validation").captions) == before


def test_csv_and_tsv_say_the_same_as_json_lines(data, pictures):
    expected = data.pairs("train")
    for name, delimiter in (("captions.csv", ","), ("captions.tsv", "\t")):
        with open(pictures / name, "w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet saves it
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["image", "licence", "text"])
            writer.writerows([row["image"], "CC0", row["text"]] for row in rows_of(pictures))
        pairs = dataclasses.replace(data, captions=name).pairs("train")
        assert pairs.captions == expected.captions
        np.testing.assert_array_equal(pairs.images, expected.images)


def test_same_picture_or_same_caption_is_the_same_label():
    labels = folder.shared_labels(np.array([0, 0, 1, 2, 3, 4]), ["a", "b", "c", "B", "d", "e"])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[[0, 1, 3]], labels[0])
    assert len(set(labels.tolist())) == 4


def test_a_picture_may_have_several_captions(data, pictures):
    rows = rows_of(pictures)
    write(pictures, [*rows[5:], *({**row, "text": f"{row['text']} again"} for row in rows)])
    pairs = data.pairs("train")
    assert len(pairs.captions) > 60
    for image, caption in zip(pairs.images, pairs.captions, strict=True):
        np.testing.assert_array_equal(image, np.broadcast_to(COLOURS[caption.split()[1]], image.shape))
    by_number = dict(zip(pairs.captions, pairs.labels, strict=True))
    both = [caption for caption in pairs.captions if f"{caption} again" in by_number]
    assert len(both) > 25
    assert all(by_number[caption] == by_number[f"{caption} again"] for caption in both)
    still = dataclasses.replace(data.augmentation, brightness=0, contrast=0, saturation=0, hue=0)
    batch = dataclasses.replace(data, augmentation=still).batches(30, seed=0)[0]
    for image, ids in zip(batch["images"], batch["input_ids"], strict=True):
        colour = COLOURS[data.vocabulary().decode(ids).split()[1]]
        np.testing.assert_array_equal(image, np.broadcast_to(colour, image.shape))
    (pictures / "files" / "9.png").write_bytes(b"")
    folder.read_folder.cache_clear()
    with pytest.raises(ValueError, match=r"9\.png \(captions\.jsonl, line 5\)"):  # the first of its two lines
        data.pairs("train")


def test_phone_photographs_stand_upright_and_transparency_is_white(tmp_path):
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (0, 0, 20, 20))  # red left, blue right; turned: red on top
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned
    picture.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    clear = Image.new("RGBA", (20, 20), (0, 255, 0, 0))
    clear.save(tmp_path / "clear.png")
    upright = folder.read_picture(tmp_path, "phone.jpg", "c", 1, 20)
    assert upright[2, 10, 0] > 200
    assert upright[17, 10, 2] > 200
    assert (folder.read_picture(tmp_path, "clear.png", "c", 1, 8) == 255).all()


def test_a_tokenizer_can_be_given(data, tmp_path):
    bpe.train(["completely other words"], 300).save(tmp_path / "own.json")
    own = dataclasses.replace(data, tokenizer=str(tmp_path / "own.json"))
    assert own.vocabulary().vocab_size == bpe.load(tmp_path / "own.json").vocab_size
    assert own.tokenize(["words"])["attention_mask"].sum() < data.tokenize(["words"])["attention_mask"].sum()


def test_the_trained_tokenizer_is_the_same_each_time(data):
    first = data.vocabulary().core.to_str()
    folder.trained.cache_clear()
    assert data.vocabulary().core.to_str() == first


def test_spec_reads_one_row(data):
    assert pipeline.spec(data, 1024)["input_ids"].shape == (1024, 16)


def test_a_missing_folder_says_what_to_set(tmp_path):
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError, match="--set data.path=FOLDER"):
            FolderData(path).pairs("train")


def test_missing_captions_name_what_is_there(data, pictures):
    (pictures / "captions.jsonl").rename(pictures / "labels.csv")
    with pytest.raises(FileNotFoundError, match=r"captions\.jsonl; the folder has labels\.csv: --set data\.captions="):
        data.pairs("train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"img": "files/0.png", "text": "x"}, r"line 3: no column 'image', the columns are 'img', 'text'"),
        ({"image": "files/0.png", "texts": "x"}, "did you mean 'texts'"),
        ({"image": "files/0.png", "text": " "}, "line 3: column 'text' should hold a text, got ' '"),
        ({"image": "files/0.png", "text": ["a", "b"]}, "should hold a text, got"),
        ({"image": "files/0.png", "text": "half \ud83d"}, "line 3: column 'text' holds half of a surrogate pair"),
        (["files/0.png", "x"], "line 3: expected an object"),
    ],
)
def test_a_wrong_row_is_named(data, pictures, row, message):
    rows = rows_of(pictures)
    rows[2] = row
    write(pictures, rows)
    with pytest.raises(ValueError, match=message):
        data.pairs("train")


def test_broken_json_is_named(data, pictures):
    text = (pictures / "captions.jsonl").read_text()
    (pictures / "captions.jsonl").write_text("\n" + text.replace('"files/3.png",', '"files/3.png"'))
    with pytest.raises(ValueError, match=r"captions\.jsonl, line 5, column 25: not JSON"):
        data.pairs("train")


def test_a_caption_that_is_not_utf8_is_named_to_the_byte(data, pictures):
    rows = rows_of(pictures)
    rows[6]["text"] = "schön"
    write(pictures, rows, encoding="latin-1")
    at = json.dumps(rows[6], ensure_ascii=False).index("ö") + 1
    with pytest.raises(ValueError, match=rf"line 7, byte {at} of the line: 0xf6 is not UTF-8"):
        data.pairs("train")


def test_a_missing_picture_is_named(data, pictures):
    (pictures / "files" / "5.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.jsonl, line 6, names the picture files/5\.png"):
        data.pairs("train")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_broken_picture_is_named(data, pictures, damage):
    path = pictures / "files" / "5.png"
    Image.effect_noise((40, 40), 90).save(path)
    content = {"truncated": path.read_bytes()[:-300], "text": b"not a picture", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"5\.png \(captions\.jsonl, line 6\) can't be read as a picture"):
        data.pairs("train")


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_an_empty_set_is_refused(data, pictures, name):
    (pictures / name).write_text("image,text\n" if name.endswith("csv") else "\n\n")
    with pytest.raises(ValueError, match=re.escape(name) + " holds no captions"):
        dataclasses.replace(data, captions=name).pairs("train")


def test_one_picture_is_too_few(data, pictures):
    write(pictures, rows_of(pictures)[:1] * 3)
    with pytest.raises(ValueError, match="1 picture"):
        data.pairs("train")


def test_there_are_two_splits(data):
    with pytest.raises(ValueError, match="no split 'test'"):
        data.pairs("test")


@pytest.mark.parametrize(("count", "share", "expected"), [(2, 0.1, 1), (40, 0.1, 4), (3, 0.99, 2), (10, 0.0, 1)])
def test_the_share_for_validation_is_kept(count, share, expected):
    assert folder.by_hash([f"{i}.png" for i in range(count)], share).sum() == expected
