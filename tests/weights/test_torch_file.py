"""PyTorch's archives read without PyTorch."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax.weights import torch_file

FOLDER = Path("tests/goldens/open_clip")  # by make_hf_clip.py: one model in three containers


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "open_clip_model.safetensors")


def test_a_training_checkpoint_holds_the_bits_of_the_safetensors_file(expected):
    tensors = torch_file.read(FOLDER / "epoch_1.pt")
    assert tensors.keys() == expected.keys()
    assert len(expected) == 74
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].tobytes() == tensor.tobytes()


def test_torchscript_holds_the_same_numbers_in_half_precision(expected):
    tensors = torch_file.read(FOLDER / "openai.pt")
    assert tensors.keys() - expected.keys() == {"attn_mask", "input_resolution", "context_length", "vocab_size"}
    assert tensors["visual.proj"].dtype == np.float16
    assert tensors["vocab_size"] == 23
    for name, tensor in expected.items():
        np.testing.assert_allclose(tensors[name], tensor, atol=1e-3)  # half precision, numbers up to 1.5


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", content)
    return path


def test_no_code_of_a_stranger_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("I ran",)

    with pytest.raises(ValueError, match=r"holds more than tensors \(UnpicklingError: builtins.print"):
        torch_file.read(archive(tmp_path / "evil.pt", pickle.dumps({"a": Evil()})))


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1])[:-2]])
def test_damage_is_one_sentence_that_names_the_file(tmp_path, content):
    with pytest.raises(ValueError, match=r"broken\.pt"):
        torch_file.read(archive(tmp_path / "broken.pt", content))
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pt is not a zip archive"):
        torch_file.read(tmp_path / "broken.pt")


def test_a_tensor_cannot_reach_out_of_its_storage():
    storage = np.arange(6.0)
    np.testing.assert_array_equal(torch_file._rebuild_tensor(storage, 1, (2, 2), (1, 3)), [[1, 4], [2, 5]])
    for offset, size, stride in [(3, (2, 2), (1, 3)), (-1, (2,), (1,)), (5, (2,), (-1,)), (6, (), ())]:
        with pytest.raises(ValueError, match="out of its storage"):
            torch_file._rebuild_tensor(storage, offset, size, stride)
