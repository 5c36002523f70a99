"""SigLIP against transformers (stored outputs, tests/goldens/make_siglip.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_names
from clip_names import close
from safetensors.numpy import load_file

from mmjax.models import clip, siglip, vit
from mmjax.nn.mlp import gelu_tanh
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops

FOLDER = Path(__file__).parents[1] / "goldens" / "hf_siglip"
VISION = vit.ViTConfig(
    32, 10, width=24, depth=2, num_heads=3, hidden=40, activation=gelu_tanh, class_token=False, pool=vit.attention_pool,
    resize=image_ops.resize_cubic, cut=True,
)  # fmt: skip
TEXT = siglip.TextConfig(vocab_size=40, length=9, width=16, depth=3, num_heads=2, hidden=36)
CONFIG = siglip.SigLIPConfig(VISION, TEXT)
MODEL = siglip.SigLIP(CONFIG)
encode_text = jax.jit(functools.partial(MODEL.apply, method="encode_text"))


@pytest.fixture(scope="module")
def hf():
    """variables, batch, and the golden."""
    golden = dict(np.load(FOLDER / "outputs.npz"))
    batch = {name: golden[name] for name in ("images", "input_ids")}
    return {"params": vit_names.from_siglip(load_file(FOLDER / "model.safetensors"))}, batch, golden


def test_embeddings_and_logits_equal_transformers(hf):
    variables, batch, golden = hf
    out = jax.jit(MODEL.apply)(variables, **batch)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        close(name, getattr(out, name), golden[name], relative=1e-5)


def test_loss_and_gradients_equal_transformers(hf):
    variables, batch, golden = hf

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(variables):
        value, aux = siglip.loss(MODEL, variables, batch, None, 0)
        return value, aux.metrics

    (value, metrics), gradients = run(variables)
    close("loss", value, golden["loss"], relative=1e-5)
    expected = vit_names.from_siglip(clip_names.group(golden, "gradients"))
    clip_names.close_trees(gradients["params"], expected, relative=1e-4)
    assert metrics["logit_bias"] == variables["params"]["logit_bias"]
    assert metrics["logit_scale"] == pytest.approx(np.exp(variables["params"]["logit_scale"]))


def test_each_tower_equals_transformers(hf):
    variables, batch, golden = hf
    vision = jax.jit(vit.ViT(VISION).apply)
    out = vision({"params": variables["params"]["vision"]}, batch["images"])
    close("patches", out.last_hidden_state, golden["vision_last_hidden_state"], relative=1e-5)
    larger = vision({"params": variables["params"]["vision"]}, golden["larger"])  # 25 x 54 pixels
    close("larger", larger.pooler_output, golden["larger_pooler"], relative=1e-5)
    text = jax.jit(siglip.TextTower(TEXT, 24).apply)
    out = text({"params": variables["params"]["text"]}, batch["input_ids"])
    close("tokens", out.last_hidden_state, golden["text_last_hidden_state"], relative=1e-5)
    masked = text({"params": variables["params"]["text"]}, batch["input_ids"], golden["attention_mask"])
    close("masked", masked.pooler_output, golden["text_pooler_masked"], relative=1e-5)
    assert np.abs(masked.pooler_output - out.pooler_output).max() > 0.01


def test_every_token_sees_every_other_and_the_padding_counts(hf):
    variables, batch, _ = hf
    text = jax.jit(siglip.TextTower(TEXT, 24).apply)
    ids = batch["input_ids"][1:2]  # 3 words and 6 of padding
    states = text({"params": variables["params"]["text"]}, ids).last_hidden_state[0]
    for at in (0, 8):
        other = ids.copy()
        other[0, at] = 7
        changed = text({"params": variables["params"]["text"]}, other).last_hidden_state[0]
        assert (np.abs(changed - states).max(-1) > 1e-4).all()


def test_gradients_through_the_embeddings_are_those_of_the_loss(hf):
    """Task.cached: the chain rule by hand equals the gradient of the whole."""
    variables, batch, golden = hf

    @jax.jit
    def run(variables):
        embeddings, pull = jax.vjp(lambda v: siglip.embed(MODEL, v, batch, None, 0), variables)
        loss = lambda *inputs: siglip.loss_of_embeddings(MODEL, *inputs, batch, 0)[0]  # noqa: E731
        direct, upstream = jax.grad(loss, argnums=(0, 1))(variables, embeddings)
        return jax.tree.map(jnp.add, direct, pull(upstream)[0])

    expected = vit_names.from_siglip(clip_names.group(golden, "gradients"))
    clip_names.close_trees(run(variables)["params"], expected, relative=1e-4)


def test_rows_of_equal_label_are_positives_of_each_other(hf):
    variables, batch, golden = hf
    logits = golden["logits_per_image"].astype(np.float64)
    positive = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
    expected = -np.log(1 / (1 + np.exp(-np.where(positive, logits, -logits)))).sum(1).mean()
    embeddings = {"image": golden["image_embeds"], "text": golden["text_embeds"]}
    value, _ = siglip.loss_of_embeddings(MODEL, variables, embeddings, {"label": np.array([4, 2, 4, 3])}, 0)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "number"),
    [
        (siglip.b16(), 203_155_970),
        (siglip.l16(), 652_150_786),
        (siglip.so400m14(), 877_960_498),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(config, number):
    side, ids = config.vision.image_size, jnp.zeros((1, 64), jnp.int32)
    variables = jax.eval_shape(siglip.SigLIP(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)), ids)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == number


def test_initial_values_are_big_visions():
    vision = dataclasses.replace(VISION, width=96, hidden=384)
    config = siglip.SigLIPConfig(vision, dataclasses.replace(TEXT, width=64, hidden=256, vocab_size=500))
    key = jax.random.key(0, impl="rbg")  # compiles in half the time
    params = jax.jit(siglip.SigLIP(config).init)(key, np.zeros((1, 32, 32, 3)), np.zeros((1, 9), int))["params"]
    vision, text = params["vision"], params["text"]
    deviations = {  # found, expected: xavier is (2 / (in + out)) ** 0.5, lecun in ** -0.5
        "patch": (vision["patch_embed"]["kernel"], 300**-0.5),
        "vision pos": (vision["pos_embed"], 96**-0.5),
        "vision query": (vision["layers"]["attention"]["query"]["kernel"], 96**-0.5),
        "vision up": (vision["layers"]["mlp"]["up"]["kernel"], (2 / 480) ** 0.5),
        "vision up bias": (vision["layers"]["mlp"]["up"]["bias"], 1e-6),
        "probe": (vision["map"]["probe"], (2 / 97) ** 0.5),
        "map down": (vision["map"]["mlp"]["down"]["kernel"], (2 / 480) ** 0.5),
        "embed": (text["embed"]["embedding"], 64**-0.5),
        "text pos": (text["pos_embed"], 64**-0.5),
        "text out": (text["layers"]["attention"]["out"]["kernel"], 64**-0.5),
        "head": (text["head"]["kernel"], 64**-0.5),
    }
    for name, (leaf, deviation) in deviations.items():
        assert np.std(leaf) == pytest.approx(deviation, rel=3 / leaf.size**0.5), name
    assert params["logit_scale"] == pytest.approx(np.log(10))
    assert params["logit_bias"] == -10
    assert not text["head"]["bias"].any()


@pytest.mark.parametrize(("rows", "expected"), [(4, 10.0002), (32768, 11.4876)])
def test_the_first_loss_does_not_explode(rows, expected):
    """At cosines of 0: one positive of logit -10, and rows - 1 negatives."""
    embeddings = {"image": np.zeros((4, 8), np.float32), "text": np.zeros((4, 8), np.float32)}
    variables = {"params": {"logit_scale": np.log(10.0), "logit_bias": np.float32(-10.0)}}
    value, _ = siglip.loss_of_embeddings(MODEL, variables, embeddings, {}, 0)
    assert value == pytest.approx(np.log1p(np.exp(10.0)) + 3 * np.log1p(np.exp(-10.0)), rel=1e-6)
    assert np.log1p(np.exp(10.0)) + (rows - 1) * np.log1p(np.exp(-10.0)) == pytest.approx(expected, abs=1e-4)


def test_zero_shot_weights_are_made_as_clips(hf):
    variables, batch, golden = hf
    other = {"input_ids": batch["input_ids"][:, ::-1]}
    weights = clip.zero_shot_weights(MODEL, variables, [{"input_ids": batch["input_ids"]}, other])
    mean = (golden["text_embeds"] + np.array(encode_text(variables, other["input_ids"]))) / 2
    np.testing.assert_allclose(weights, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-5)


def test_bfloat16_stays_near_float32(hf):
    variables, batch, golden = hf
    model = siglip.SigLIP(dataclasses.replace(CONFIG, compute=Compute(dtype=jnp.bfloat16)))
    out = jax.jit(model.apply)(variables, **batch)
    assert out.image_embeds.dtype == jnp.float32  # lengths and losses are float32
    for name in ("image_embeds", "text_embeds"):  # 8 bits of mantissa through 5 layers
        np.testing.assert_allclose(getattr(out, name), golden[name], atol=0.05)


def test_too_long_a_row_is_refused_with_both_numbers(hf):
    with pytest.raises(ValueError, match="at most 9 tokens a row, got 10"):
        MODEL.apply(hf[0], np.zeros((1, 10), int), method="encode_text")
