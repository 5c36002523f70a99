"""TFDS data sets by name, without TensorFlow, from a builder that the test prepares and from TFDS's own mock."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from mmjax.data import catalogue, pipeline
from mmjax.data.catalogue import TFDSData

tfds = pytest.importorskip("tensorflow_datasets")

COLOURS = {"dark red": (150, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 250)}


@pytest.fixture(autouse=True)
def fresh():
    catalogue.open_builder.cache_clear()
    catalogue.trained_vocabulary.cache_clear()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from captioned.captioned import Captioned

    folder = tmp_path_factory.mktemp("tfds")
    Captioned(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


@pytest.fixture
def data(prepared):
    return TFDSData("captioned", data_dir=prepared, image_size=16, text_length=12)


def test_label_names_become_captions_of_the_right_pictures(data):
    pairs = data.pairs("train")
    assert pairs.images.shape == (18, 16, 16, 3)
    assert pairs.names == tuple(COLOURS)
    assert len(set(pairs.labels.tolist())) == 3
    for image, caption, label in zip(pairs.images, pairs.captions, pairs.labels, strict=True):
        assert caption == f"a photo of {pairs.names[label]}"
        np.testing.assert_array_equal(image, np.broadcast_to(COLOURS[pairs.names[label]], image.shape))


def test_train_and_validation_share_no_row(data):
    data = dataclasses.replace(data, text_key="caption")
    train, validation = (data.pairs(split).captions for split in ("train", "validation"))
    assert len(train) == 18
    assert sorted(train + validation) == sorted(f"größe {i} on the left" for i in range(20))


def test_text_captions_train_a_vocabulary_that_reads_them(data):
    data = dataclasses.replace(data, text_key="caption")
    vocabulary = data.vocabulary()
    assert len(vocabulary.encode(["größe left"])[0]) == 2
    row = data.tokenize(["größe 3"])["input_ids"][0]
    assert vocabulary.decode(row) == "größe 3"


def test_a_batch_pairs_pictures_captions_and_labels(data):
    plain = dataclasses.replace(data.augmentation, brightness=0, contrast=0, saturation=0, hue=0)
    data = dataclasses.replace(data, augmentation=plain)
    batch = data.batches(8, seed=0)[3]
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "images": ((8, 16, 16, 3), "uint8"),
        "input_ids": ((8, 12), "int32"),
        "attention_mask": ((8, 12), "bool"),
        "label": ((8,), "int32"),
    }
    for image, ids, label in zip(batch["images"], batch["input_ids"], batch["label"], strict=True):
        name = list(COLOURS)[label]
        assert data.vocabulary().decode(ids) == f"a photo of {name}"
        np.testing.assert_array_equal(image, np.broadcast_to(COLOURS[name], image.shape))


def test_rows_of_a_batch_are_those_of_the_global_batch(data):
    whole = data.batches(8, seed=5)[2]
    for rows in (slice(0, 4), slice(4, 8)):
        for name, part in data.batches(8, seed=5, rows=rows)[2].items():
            np.testing.assert_array_equal(part, whole[name][rows])


def test_spec_reads_one_row(data):
    assert pipeline.spec(data, 4096)["images"].shape == (4096, 16, 16, 3)


def test_captions_with_left_and_right_are_not_mirrored(data, monkeypatch):
    seen = []
    render = catalogue.augment.render
    monkeypatch.setattr(catalogue.augment, "render", lambda *args: seen.append(args[3]) or render(*args))
    data.batches(4, seed=0)[0]
    dataclasses.replace(data, text_key="caption").batches(4, seed=0)[0]
    assert [may.all() for may in seen] == [True, False]
    assert not seen[1].any()


def test_grey_pictures_become_rgb(data):
    pairs = dataclasses.replace(data, image_key="grey").pairs("validation")
    assert pairs.images.shape == (2, 16, 16, 3)
    assert (pairs.images == pairs.images[..., :1]).all()


def test_an_eval_reads_no_more_than_it_may(data):
    assert len(dataclasses.replace(data, most_pairs=5).pairs("train").captions) == 5


def test_any_registered_data_set_opens_by_name():
    with tfds.testing.mock_data(num_examples=6):
        data = TFDSData("cifar10", splits=("train", "test"))
        assert data.batches(4, seed=0)[0]["images"].shape == (4, 32, 32, 3)
        pairs = data.pairs("validation")
    assert len(pairs.names) == 10
    assert pairs.captions[0] == f"a photo of {pairs.names[pairs.labels[0]]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_key": "imagee"}, r"no feature 'imagee'; it has caption, grey, image, label; did you mean 'image'"),
        ({"text_key": "sentence"}, "no feature 'sentence'"),
        ({"label_key": "labels"}, "did you mean 'label'"),
        ({"splits": ("train", "test")}, "Unknown split 'test'"),
        ({"name": ""}, "data.name is empty"),
        ({"name": "captoned"}, "no data set 'captoned'"),
        ({"name": "cifar100x"}, "did you mean cifar100"),
    ],
)
def test_wrong_fields_are_named(data, change, message):
    data = dataclasses.replace(data, **change)
    with pytest.raises(ValueError, match=message):
        data.pairs("validation")


def test_there_are_two_splits(data):
    with pytest.raises(ValueError, match="no split 'test'"):
        data.pairs("test")


def test_what_is_not_prepared_says_how_to(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"isn't prepared.*array_record.*download_and_prepare"):
        TFDSData("mnist", data_dir=str(tmp_path)).pairs("train")


def test_a_format_without_random_access_says_so(data, prepared, tmp_path):
    import json
    import shutil

    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "captioned" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"stored as tfrecord, which has no random.*array_record"):
        dataclasses.replace(data, data_dir=str(tmp_path)).pairs("train")


def test_neither_importing_nor_reading_loads_tensorflow(prepared):
    code = f"""
import sys
from mmjax.data import catalogue
assert "tensorflow_datasets" not in sys.modules and "grain" not in sys.modules
catalogue.TFDSData("captioned", data_dir={prepared!r}).batches(2, seed=0)[0]
assert "tensorflow" not in sys.modules and "tensorflow_datasets" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
