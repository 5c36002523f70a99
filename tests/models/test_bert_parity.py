"""BERT next to transformers, live: random sizes and weights through mmjax.weights, every head, and MiniLM itself."""

from pathlib import Path

import bert_names
import jax
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.evals import semantic_search
from mmjax.models import bert
from mmjax.text import wordpiece

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parents[1] / "goldens" / "minilm.npz"
OUTPUTS = {"prediction_logits": "logits", "seq_relationship_logits": "nsp"}


def original(name: str, seed: int, activation: str = "gelu"):
    torch = pytest.importorskip("torch", reason="needs the [parity] extra")
    transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4))
    config = transformers.BertConfig(
        vocab_size=57, hidden_size=heads * 10, num_attention_heads=heads, intermediate_size=int(rng.integers(20, 50)),
        num_hidden_layers=int(rng.integers(1, 4)), max_position_embeddings=16, hidden_act=activation,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            weight.copy_((1.0 if parameter.endswith("LayerNorm.weight") else 0.0) + torch.randn(weight.shape) * 0.2)
    return model


def batch(seed: int) -> dict:
    rng = np.random.default_rng(seed + 100)
    mask = np.arange(13) < rng.integers(1, 14, 4)[:, None]
    return {
        "input_ids": rng.integers(0, 57, (4, 13)).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (4, 13)).astype(np.int32),
    }


def tensors(arrays: dict) -> dict:
    import torch

    return {name: torch.tensor(np.asarray(x, np.int64)) for name, x in arrays.items()}


@pytest.mark.parametrize(("seed", "activation"), [(0, "gelu"), (1, "gelu_new"), (2, "gelu")])
def test_loss_and_gradients_of_both_tasks(tmp_path, seed, activation):
    theirs, inputs = original("BertForPreTraining", seed, activation), batch(seed)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    rng = np.random.default_rng(seed)
    labels = np.where((rng.random((4, 13)) < 0.3) & inputs["attention_mask"], rng.integers(0, 57, (4, 13)), -100)
    labels[0, 0] = 3  # at least one
    more = {"labels": labels.astype(np.int32), "next_sentence_label": rng.integers(0, 2, 4).astype(np.int32)}
    out = theirs(**tensors(inputs), **tensors(more))
    out.loss.backward()
    ours = jax.jit(model.apply)(variables, **inputs)
    close("logits", ours.logits, out.prediction_logits.detach().numpy(), relative=1e-5)
    close("nsp", ours.nsp, out.seq_relationship_logits.detach().numpy(), relative=1e-5)

    def loss(variables):
        return bert.pretraining_loss(model, variables, {**inputs, **more}, jax.random.key(0), 0)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    close("loss", value, out.loss.item(), relative=1e-5)
    expected = bert_names.from_hf({name: weight.grad.numpy() for name, weight in theirs.named_parameters()})
    close_trees(gradients["params"], expected, relative=1e-4)


@pytest.mark.parametrize(
    "name", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification"]
)
def test_heads_and_files_written_here(tmp_path, name):
    theirs, inputs = original(name, 5), batch(5)
    theirs.save_pretrained(tmp_path / "theirs")
    model, variables = weights.load_hf(tmp_path / "theirs")
    weights.save_hf(tmp_path / "ours", model, variables)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched
    assert again.config.hidden_act == theirs.config.hidden_act
    out = again.eval()(**tensors(inputs))
    ours = jax.jit(model.apply)(variables, **inputs)
    compared = 0
    for key, expected in out.items():
        close(key, getattr(ours, OUTPUTS.get(key, key)), expected.detach().numpy(), relative=1e-5)
        compared += 1
    assert compared == (2 if name == "BertModel" else 1)


def test_minilm_gives_the_vectors_of_the_original(minilm):
    golden = np.load(GOLDEN)
    model, variables = weights.load_hf(minilm)
    tokenizer, sentences = wordpiece.load(minilm), list(golden["sentences"])
    assert model == bert.BERT(bert.minilm())
    rows = tokenizer.rows(sentences)
    np.testing.assert_array_equal(rows["input_ids"], golden["input_ids"])
    out = jax.jit(model.apply)(variables, **rows)
    mask = rows["attention_mask"][:2]
    close("last state", out.last_hidden_state[:2][mask], golden["last_hidden_state"][mask], relative=1e-5)
    close("pooler", out.pooler_output, golden["pooler_output"], relative=1e-5)
    vectors = semantic_search.embed(model, variables, tokenizer, sentences)
    close("sentence vectors", vectors, golden["vectors"], relative=1e-5)
    answer = semantic_search.search(model, variables, tokenizer, ["I am so tired"], shown=3).text.splitlines()
    assert answer[0] == "I am so tired"
    assert "tired face" in answer[1]
