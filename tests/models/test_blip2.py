"""BLIP-2's second stage against transformers, by stored outputs (tests/goldens/make_hf_blip2.py)."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close

from mmjax import weights
from mmjax.models import blip2, llama, llava, qformer, vit
from mmjax.nn import sampling
from mmjax.weights.engine import flatten

FOLDER = Path(__file__).parents[1] / "goldens" / "hf_blip2"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "outputs.npz"))


@pytest.fixture(scope="module")
def loaded():
    return weights.load_hf(FOLDER)


def test_logits_loss_and_gradients_equal_transformers(golden, loaded):
    model, variables = loaded
    inputs = {name: golden[name] for name in ("input_ids", "images", "attention_mask")}
    batch = inputs | {"spoken": golden["labels"] != -100}

    def value(variables):
        out = model.apply(variables, **inputs)
        return llava.loss(model, variables, batch, None, 0)[0], out.logits

    (loss, logits), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(variables)
    counted = golden["attention_mask"]
    close("logits", logits[counted], golden["logits"][counted], relative=1e-5)
    close("loss", loss, golden["loss"], relative=1e-5)
    eyes = gradients["params"]["vision"]
    blocks = eyes["qformer"]["layers"]
    found = {
        "query_tokens": eyes["query_tokens"][None],
        "language_projection.weight": gradients["params"]["projector"]["kernel"].T,
        "vision_model.post_layernorm.bias": eyes["tower"]["norm"]["bias"],
        "qformer.encoder.layer.1.attention.attention.key.weight": blocks["block1"]["attention"]["key"]["kernel"][0].T,
        "qformer.encoder.layer.0.intermediate_query.dense.bias": blocks["block0"]["query_mlp"]["up"]["bias"][0],
        "qformer.encoder.layer.2.crossattention.output.dense.weight": eyes["qformer"]["rest"]["block0"]["cross"]["out"][
            "kernel"
        ].T,
    }
    assert {f"gradient/{name}" for name in found} == {name for name in golden if name.startswith("gradient/")}
    for name, gradient in found.items():
        close(f"gradient {name}", gradient, golden[f"gradient/{name}"], relative=1e-4)


def test_captions_equal_transformers(golden, loaded):
    model, variables = loaded
    prompt = golden["input_ids"][:, :4].astype(np.int32)
    inputs = {"images": golden["images"]}
    found = sampling.generate(model, variables, prompt, max_new_tokens=5, inputs=inputs)
    np.testing.assert_array_equal(found.tokens, golden["spoken"])


def test_what_is_trained_is_the_eyes_without_their_tower(loaded):
    _, variables = loaded
    names = set(flatten(variables["params"]))
    trained = {name for name in names if re.search(blip2.TRAINABLE, name)}
    assert {name.split("/")[0] for name in trained} == {"projector", "vision"}
    assert {name for name in trained if name.startswith("vision/tower/")} == {
        "vision/tower/norm/scale", "vision/tower/norm/bias"
    }  # fmt: skip
    assert {name for name in names if name.startswith("vision/qformer/")} < trained
    assert "vision/query_tokens" in trained


def test_the_eyes_of_stage_1_are_those_of_stage_2():
    stage1 = jax.eval_shape(
        qformer.Stage1(qformer.RetrievalConfig.tiny()).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)),
        jnp.zeros((1, 2), jnp.int32),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape), jnp.float32), stage1["params"])
    model = blip2.Blip2(blip2.tiny())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 32, 32, 3)))
    eyes = blip2.eyes_of(params)
    assert jax.tree.map(jnp.shape, eyes) == jax.tree.map(jnp.shape, shapes["params"]["vision"])
    same = eyes["qformer"]["layers"]["block0"]["cross"]["key"]["kernel"]
    np.testing.assert_array_equal(same, params["qformer"]["layers"]["block0"]["cross"]["key"]["kernel"])
    assert same.unsafe_buffer_pointer() != (
        params["qformer"]["layers"]["block0"]["cross"]["key"]["kernel"].unsafe_buffer_pointer()
    )


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_width must be vision.width=16, got 1408"):
        blip2.blip2(vit.ViTConfig.tiny(), qformer.QFormerConfig(), llama.LlamaConfig.tiny(), 63)
    with pytest.raises(ValueError, match="image_token must be an id of the vocabulary"):
        blip2.blip2(vit.ViTConfig.tiny(), qformer.QFormerConfig.tiny(), llama.LlamaConfig.tiny(), 64)
    assert blip2.vit_g_llama_7b().tokens_per_image == 32
