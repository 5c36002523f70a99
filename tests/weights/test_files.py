"""Weight files: what is written is read again by others, and damage is one sentence."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax.weights import files

SHARDED = Path("tests/goldens/hf_clip_legacy")  # by make_hf_clip.py
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), jnp.bfloat16), "c": np.zeros((0, 2))}


@pytest.fixture
def path(tmp_path):
    files.write(tmp_path / "model.safetensors", TENSORS)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("read", [files.read, load_file])
def test_what_is_written_is_read_again(path, read):
    tensors = read(path)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(tensors[name], tensor)


def test_reading_is_lazy(path):
    tensor = files.read(path)["a"]
    while tensor is not None and not isinstance(tensor, np.memmap):
        tensor = getattr(tensor, "base", None) if not isinstance(tensor, memoryview) else tensor.obj
    assert isinstance(tensor, np.memmap)


def test_shards_are_one_dictionary():
    tensors, parts = files.read_folder(SHARDED), list(SHARDED.glob("*.safetensors"))
    assert len(parts) == 4
    expected = {name: x for part in parts for name, x in load_file(part).items()}
    assert tensors.keys() == expected.keys()
    assert all((tensors[name] == expected[name]).all() for name in expected)


def test_every_truncation_is_noticed(path, tmp_path):
    content, short = path.read_bytes(), tmp_path / "short.safetensors"
    for length in range(len(content)):
        short.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"short\.safetensors is damaged"):
            files.read(short)


def test_an_index_that_names_a_missing_file(tmp_path):
    shutil.copytree(SHARDED, tmp_path / "model")
    (tmp_path / "model" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json names model-00002-of-00003\.safetensors"):
        files.read_folder(tmp_path / "model")


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 3}', "{", "\xff"])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"index\.json"):
        files.read_folder(tmp_path)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path):
    save_file({"a": np.ones(1)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"secret\.safetensors"):
        files.read_folder(folder)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights in .* expected model.safetensors"):
        files.read_folder(tmp_path)


FULL_DISK = """
import resource, sys, pathlib, numpy as np
from mmjax.weights import files
path = pathlib.Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write, name, content in [
    (files.write, path.name, {"a": np.zeros(1000)}), (files.write_json, "config.json", {"a": 1000 * "long"})
]:
    try:
        write(path.with_name(name), content)
    except OSError as error:
        print("refused", error)
"""


def test_a_full_disk_keeps_what_was_there(path):
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    tensors, config = done.stdout.splitlines()
    assert tensors.startswith(f"refused cannot write {path}")
    assert config.startswith("refused")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no half file stays
