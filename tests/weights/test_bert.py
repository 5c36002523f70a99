"""BERT's heads from and to transformers: equal outputs, equal bits, files of 2018, and errors one can act on."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax import weights
from mmjax.models import bert
from mmjax.nn.mlp import gelu, gelu_tanh
from mmjax.parallel import mesh, rules
from mmjax.weights import bert as names
from mmjax.weights import engine

FOLDERS = Path("tests/goldens/hf_bert")
HEADS = {
    "encoder": bert.BERT,
    "pretraining": bert.BERTForPreTraining,
    "masked_lm": bert.BERTForMaskedLM,
    "classification": bert.BERTForClassification,
    "tagging": bert.BERTForTagging,
}
OUTPUTS = {"prediction_logits": "logits", "seq_relationship_logits": "nsp"}  # theirs -> ours, where they differ


def read(folder: Path) -> tuple[dict, dict]:
    """The inputs and outputs of a golden."""
    golden = dict(np.load(folder / "outputs.npz"))
    inputs = {name: golden.pop(name).astype(np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
    return inputs, {OUTPUTS.get(name, name): x for name, x in golden.items()}


def assert_equal_outputs(model, variables, inputs, outputs):
    out = jax.jit(model.apply)(variables, **inputs)
    for name, expected in outputs.items():
        np.testing.assert_allclose(getattr(out, name), expected, atol=1e-5, rtol=1e-5, err_msg=name)


def assert_same_file(one: Path, other: Path):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.fixture
def folder(tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(FOLDERS / "pretraining", tmp_path / "model"))


def edit(path: Path, **changes):
    """Sets fields, or removes those given as None."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize("name", HEADS)
def test_each_head_computes_what_the_original_computed(name):
    model, variables = weights.load_hf(FOLDERS / name)
    assert type(model) is HEADS[name]
    assert model.config.activation is (gelu_tanh if name == "tagging" else gelu)
    inputs, outputs = read(FOLDERS / name)
    assert outputs
    assert_equal_outputs(model, variables, inputs, outputs)


@pytest.mark.parametrize("name", HEADS)
def test_there_and_back_keeps_every_bit(name, tmp_path):
    model, variables = weights.load_hf(FOLDERS / name)
    weights.save_hf(tmp_path, model, variables)
    assert_same_file(tmp_path / "model.safetensors", FOLDERS / name / "model.safetensors")
    assert weights.load_hf(tmp_path)[0] == model  # sizes, GELU's form and the labels' names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", HEADS)
def test_the_table_names_each_leaf_once(name):
    config = bert.BERTConfig.tiny()
    model = HEADS[name](config, ("a", "b")) if HEADS[name] in names.LABELLED else HEADS[name](config)
    assert sorted(rule.ours for rule in names.RULES(model)) == sorted(engine.flatten(names.abstract(model)["params"]))


def test_a_file_of_2018_with_more_heads_than_its_config_names():
    model, variables = weights.load_hf(FOLDERS / "legacy")
    assert type(model) is bert.BERTForMaskedLM
    inputs, outputs = read(FOLDERS / "pretraining")  # the same numbers under today's names
    assert_equal_outputs(model, variables, inputs, {"logits": outputs["logits"]})


def test_the_encoder_of_a_file_with_heads(tmp_path):
    folder = Path(shutil.copytree(FOLDERS / "legacy", tmp_path / "model"))
    edit(folder / "config.json", architectures=["BertModel"])
    model, variables = weights.load_hf(folder)
    whole = weights.load_hf(FOLDERS / "pretraining")[1]["params"]["bert"]
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(whole)
    for ours, expected in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_sharded_load_equals_the_whole():
    grid = mesh.MeshShape(data=1, fsdp=4, tensor=2).build()
    _, variables = weights.load_hf(
        FOLDERS / "pretraining", shardings=lambda tree: rules.shardings(grid, rules.DEFAULT, tree)
    )
    up = variables["params"]["bert"]["layers"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 2, 10)}
    for ours, whole in zip(
        jax.tree.leaves(variables), jax.tree.leaves(weights.load_hf(FOLDERS / "pretraining")[1]), strict=True
    ):
        np.testing.assert_array_equal(ours, whole)


# --- what users get wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForMultipleChoice"]}, "supported are BertModel, BertForPreTraining, BertForMaskedLM"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', supported are gelu, gelu_new"),
        ({"is_decoder": True}, "is_decoder is True, supported is False only"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key', supported is 'absol"),
        ({"hidden_size": "8"}, "hidden_size is '8', expected a whole number"),
        ({"num_attention_heads": 3}, "width must be a multiple of num_heads, got width=8, num_heads=3"),
        ({"num_hidden_layers": 1}, r"unknown bert\.encoder\.layer\.1\."),
        ({"vocab_size": 24}, r"word_embeddings\.weight is \[23, 8\], expected \[24, 8\]"),
        (
            {"architectures": ["BertForTokenClassification"], "id2label": {"0": "a", "2": "b"}},
            "id2label must number its labels 0, 1, 2",
        ),
        ({"architectures": ["BertForSequenceClassification"]}, r"missing classifier\.weight, classifier\.bias"),
    ],
)
def test_a_wrong_config_is_one_sentence(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        weights.load_hf(folder)


def test_unknown_tensors_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "bert.adapter.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"unknown bert\.adapter\.weight"):
        weights.load_hf(folder)


def test_a_text_model_takes_no_image_size_and_no_form_of_open_clip(tmp_path):
    with pytest.raises(ValueError, match="holds transformers' BERT, which reads no images; leave image_size out"):
        weights.load_hf(FOLDERS / "encoder", image_size=32)
    with pytest.raises(ValueError, match=r"only a CLIP has a form of open_clip; .*encoder holds a BERT"):
        weights.convert(FOLDERS / "encoder", tmp_path / "out", to="open_clip")


def test_what_transformers_has_no_name_for_is_refused_and_nothing_is_written(tmp_path):
    config = bert.BERTConfig.tiny()
    for model, message in (
        (bert.BERT(dataclasses.replace(config, activation=jax.nn.relu)), "has no name here; supported are gelu"),
        (bert.BERT(config, pooled=False), r"has a pooler in BertModel; use BERT\(config, pooled=True\)"),
    ):
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), names.abstract(model))
        with pytest.raises(ValueError, match=message):
            weights.save_hf(tmp_path / "out", model, variables)
    assert not (tmp_path / "out").exists()
