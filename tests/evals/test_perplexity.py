"""Perplexity of known distributions, of packed rows and of a whole split in any number of batches."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.packing import pack
from mmjax.evals.perplexity import Perplexity
from mmjax.models import llama


@pytest.fixture(scope="module")
def model():
    return llama.Llama(dataclasses.replace(llama.LlamaConfig.tiny(), vocab_size=50, length=32))


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 50, size).tolist() for size in (3, 9, 16, 5, 12, 7, 2, 16)]
    packed = pack(documents, 16)
    return types.SimpleNamespace(documents=documents, texts=lambda split: packed.batch(range(len(packed.rows))))


def test_who_knows_nothing_is_as_perplexed_as_the_vocabulary_is_large(model, variables, data):
    silent = jax.tree.map(jnp.zeros_like, variables)
    metrics = Perplexity("held_out")(model, silent, data, jax.random.key(0)).metrics
    assert metrics["held_out/perplexity"] == pytest.approx(50, rel=1e-5)
    assert metrics["held_out/bits_per_token"] == pytest.approx(np.log2(50), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_it_is_that_of_each_document_alone_whatever_the_batches(model, variables, data, rows):
    longest = max(map(len, data.documents))
    log_chances = jax.jit(lambda ids: jax.nn.log_softmax(model.apply(variables, ids).logits, axis=-1))
    nll, count = 0.0, 0
    for document in data.documents:
        ids = np.zeros((1, longest), np.int32)  # what follows a document does not change what is before
        ids[0, : len(document)] = document
        after = np.arange(len(document) - 1)
        nll -= float(np.asarray(log_chances(ids))[0, after, document[1:]].sum())
        count += len(document) - 1
    found = Perplexity("held_out", rows=rows)(model, variables, data, jax.random.key(0)).metrics
    assert found["held_out/perplexity"] == pytest.approx(np.exp(nll / count), rel=1e-5)
