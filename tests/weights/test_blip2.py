"""Q-Former and BLIP-2 in and out of transformers' folders (tests/goldens/make_hf_blip2.py)."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from safetensors.numpy import load_file

from mmjax import weights
from mmjax.models import blip2, llava, qformer
from mmjax.nn.mlp import gelu_tanh
from mmjax.ops import masks
from mmjax.weights import blip2 as rules

GOLDENS = Path(__file__).parents[1] / "goldens"
FOLDERS = {"hf_qformer": qformer.QFormer, "hf_blip2_retrieval": qformer.Blip2Retrieval, "hf_blip2": blip2.Blip2}


def outputs(folder: str) -> dict:
    return dict(np.load(GOLDENS / folder / "outputs.npz"))


def edited(folder: str, target: Path, **changes) -> Path:
    """A copy whose config.json has other fields; `part__field` for those of a part, None removes."""
    folder = Path(shutil.copytree(GOLDENS / folder, target / "model"))
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *parts, last = name.split("__")
        place = config
        for part in parts:
            place = place[part]
        place.pop(last, None) if value is None else place.__setitem__(last, value)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_bare_qformer_computes_what_transformers_does():
    model, variables = weights.load_hf(GOLDENS / "hf_qformer")
    golden = outputs("hf_qformer")
    assert isinstance(model, qformer.QFormer)
    queries, words = golden["embeds"][:, :3], golden["embeds"][:, 3:]
    apply = jax.jit(model.apply)
    out = apply(variables, queries, golden["states"], golden["picture_mask"])
    close("alone", out.last_hidden_state, golden["alone"], relative=1e-5)
    valid = jnp.array(golden["text_mask"])
    out = apply(variables, queries, golden["states"], None, words, qformer.matching(valid, 3))
    close("both", out.last_hidden_state, golden["both"], relative=1e-5)
    out = apply(variables, text_embeds=words, mask=masks.Padding(valid))
    close("words", out.last_hidden_state, golden["words"], relative=1e-5)


def test_retrieval_computes_what_transformers_does():
    model, variables = weights.load_hf(GOLDENS / "hf_blip2_retrieval")
    golden = outputs("hf_blip2_retrieval")
    out = jax.jit(model.apply)(variables, golden["images"], golden["input_ids"], golden["attention_mask"])
    for name in ("itc", "itm", "image_embeds", "text_embeds"):
        close(name, getattr(out, name), golden[name], relative=1e-5)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_read_is_written_tensor_for_tensor(folder, tmp_path):
    model, variables = weights.load_hf(GOLDENS / folder)
    assert type(model) is FOLDERS[folder]
    weights.save_hf(tmp_path, model, variables)
    theirs, ours = (load_file(x / "model.safetensors") for x in (GOLDENS / folder, tmp_path))
    assert set(ours) == set(theirs)
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, err_msg=name)
    again, same = weights.load_hf(tmp_path)
    assert again.config == model.config if folder != "hf_blip2" else again.config.see == model.config.see
    jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        (
            "hf_blip2",
            {"text_config__model_type": "opt"},
            "model_type is 'opt', supported are llama, mistral; the publi",
        ),
        ("hf_blip2", {"text_config": None}, "text_config: model_type is 'opt'"),
        ("hf_blip2", {"image_token_index": None}, "image_token_index is missing, expected a whole number"),
        ("hf_blip2", {"qformer_config__use_qformer_text_input": True}, "no text goes through it in generation"),
        ("hf_blip2", {"architectures": ["Blip2Model"]}, "architectures is .'Blip2Model'., supported are"),
        ("hf_blip2_retrieval", {"qformer_config__use_qformer_text_input": False}, "but retrieval reads texts"),
        ("hf_qformer", {"hidden_act": "swish"}, "hidden_act is 'swish', supported are gelu"),
        ("hf_qformer", {"num_hidden_layers": 5}, "missing encoder.layer.4"),
        ("hf_qformer", {"num_hidden_layers": 3}, "unknown encoder.layer.3"),
    ],
)
def test_a_wrong_config_is_one_sentence(folder, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        weights.load_hf(edited(folder, tmp_path, **changes))


def test_what_the_format_cannot_say_is_refused(tmp_path):
    model, variables = weights.load_hf(GOLDENS / "hf_qformer")
    odd = qformer.QFormer(dataclasses.replace(model.config, activation=jnp.tanh))
    with pytest.raises(ValueError, match="has no name here; supported are gelu"):
        weights.save_hf(tmp_path / "out", odd, variables)
    assert rules.to_config(qformer.QFormer(dataclasses.replace(model.config, activation=gelu_tanh)))
    model, variables = weights.load_hf(GOLDENS / "hf_blip2")
    other = blip2.Blip2(dataclasses.replace(model.config, projector=llava.mlp))
    with pytest.raises(ValueError, match="by a Q-Former and one layer"):
        weights.save_hf(tmp_path / "out", other, variables)
    assert not (tmp_path / "out").exists()


def test_images_of_another_size():
    model, variables = weights.load_hf(GOLDENS / "hf_blip2", image_size=16)
    assert variables["params"]["vision"]["tower"]["pos_embed"].shape == (17, 12)
    assert model.config.vision.image_size == 16
    with pytest.raises(ValueError, match="reads no images"):
        weights.load_hf(GOLDENS / "hf_qformer", image_size=16)
