"""Features of every layer are those of the model itself, and padding is no part of them."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.evals import features, layers
from mmjax.models import bert, clip, gpt, llama, vit

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(5, 16, 16, 3)).astype(np.float32)
IDS = RNG.integers(1, 30, (5, 6)).astype(np.int32)
MASK = np.arange(6) < np.array([6, 3, 1, 5, 2])[:, None]
SIZES = {"width": 8, "depth": 3, "num_heads": 2, "hidden": 16}
VISION = vit.ViTConfig(16, 8, **SIZES)


def random(model, *inputs):
    """Parameters without running, or compiling, the model."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def two_towers():
    model = clip.CLIP(clip.CLIPConfig(VISION, clip.TextConfig(30, 6, **{**SIZES, "depth": 2}), embed_dim=4))
    return model, random(model, IMAGES, IDS, MASK)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(features, "BATCH_SIZE", 2)  # 2, 2 and 1


def test_a_vision_tower_gives_its_class_token_after_each_block(two_towers):
    model, variables = two_towers
    found = layers.of_images(model, variables, IMAGES)
    states = jax.jit(lambda v, x: model.apply(v, x, method=lambda m, x: m.vision(x, collect=True).hidden_states))
    hidden = states(variables, IMAGES)
    assert found.shape == (5, 3, 8)
    np.testing.assert_allclose(found, np.asarray(hidden)[:, :, 0].swapaxes(0, 1), atol=1e-5)


def test_without_a_class_token_it_is_the_mean_of_patches():
    model = vit.ViT(dataclasses.replace(VISION, class_token=False, pool=vit.patch_mean))
    variables = random(model, IMAGES)
    hidden = np.asarray(jax.jit(lambda v, x: model.apply(v, x, collect=True).hidden_states)(variables, IMAGES))
    np.testing.assert_allclose(layers.of_images(model, variables, IMAGES), hidden.mean(2).swapaxes(0, 1), atol=1e-5)


def test_a_text_tower_gives_the_mean_over_tokens_that_count(two_towers):
    model, variables = two_towers
    found = layers.of_texts(model, variables, {"input_ids": IDS, "attention_mask": MASK})
    states = jax.jit(lambda v, *x: model.apply(v, *x, method=lambda m, *x: m.text(*x, collect=True).hidden_states))
    hidden = states(variables, IDS, MASK)
    assert found.shape == (5, 2, 8)
    wanted = [[layer[row, MASK[row]].mean(0) for layer in np.asarray(hidden)] for row in range(5)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    others = layers.of_texts(model, variables, {"input_ids": np.where(MASK, IDS, 7), "attention_mask": MASK})
    np.testing.assert_allclose(others, found, atol=1e-5)


def test_without_a_mask_all_tokens_count(two_towers):
    found = layers.of_texts(*two_towers, {"input_ids": IDS})
    wanted = layers.of_texts(*two_towers, {"input_ids": IDS, "attention_mask": np.ones_like(MASK)})
    np.testing.assert_array_equal(found, wanted)


def test_an_encoder_of_texts_gives_all_its_layers_and_a_decoder_its_last():
    rows = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": 0 * IDS}
    model = bert.BERT(bert.BERTConfig(30, 6, **SIZES))
    variables = random(model, IDS)
    last = np.asarray(jax.jit(model.apply)(variables, IDS, MASK).last_hidden_state)
    found = layers.of_texts(model, variables, rows)
    assert found.shape == (5, 3, 8)
    np.testing.assert_allclose(found[:, -1], [last[row, MASK[row]].mean(0) for row in range(5)], atol=1e-5)
    model = gpt.GPT(gpt.GPTConfig(30, 6, **SIZES))
    variables = random(model, IDS)
    last = np.asarray(jax.jit(model.apply)(variables, IDS, MASK).last_hidden_state)
    found = layers.of_texts(model, variables, rows)
    assert found.shape == (5, 1, 8)
    np.testing.assert_allclose(found[:, 0], [last[row, MASK[row]].mean(0) for row in range(5)], atol=1e-5)


def test_a_llama_gives_all_its_layers():
    model = llama.Llama(llama.LlamaConfig(30, 6, width=8, depth=3, num_heads=2, num_kv_heads=1, head_dim=4, hidden=16))
    variables = random(model, IDS)
    out = jax.jit(lambda v, *x: model.apply(v, *x, collect=True))(variables, IDS, MASK)
    last = out.hidden_states[-1]
    normed = last * jax.lax.rsqrt((last**2).mean(-1, keepdims=True) + 1e-6) * variables["params"]["norm"]["scale"]
    np.testing.assert_allclose(normed, out.last_hidden_state, atol=1e-5)
    found = layers.of_texts(model, variables, {"input_ids": IDS, "attention_mask": MASK})
    wanted = [[layer[row, MASK[row]].mean(0) for layer in np.asarray(out.hidden_states)] for row in range(5)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_a_model_reads(two_towers):
    assert layers.reads(two_towers[0]) == ("image", "text")
    assert layers.reads(vit.ViT(VISION)) == ("image",)
    assert layers.reads(bert.BERT(bert.BERTConfig.tiny())) == ("text",)
    assert layers.reads(gpt.GPT(gpt.GPTConfig.tiny())) == ("text",)
    assert layers.reads(vit.Stem((8,))) == ("image",)
    assert layers.reads(object()) == ()
