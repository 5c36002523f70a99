"""CLIP against transformers and open_clip (stored outputs, tests/goldens/make_clip.py), then what users rely on."""

import dataclasses
import functools
import math
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close

from mmjax.models import clip, vit
from mmjax.nn.mlp import quick_gelu
from mmjax.nn.stack import Compute

GOLDENS = Path(__file__).parents[1] / "goldens"
VISION = vit.ViTConfig(30, 10, width=24, depth=2, num_heads=3, hidden=40, activation=quick_gelu, epsilon=1e-5)
TEXT = clip.TextConfig(vocab_size=60, length=16, width=16, depth=3, num_heads=2, hidden=36, eos_id=51)
CONFIG = clip.CLIPConfig(VISION, TEXT, embed_dim=12)
MODEL = clip.CLIP(CONFIG)
OPEN_CLIP = clip.CLIP(  # its MLPs are 4 times the width, its rows end at the highest id
    dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(VISION, hidden=96),
        text=dataclasses.replace(TEXT, length=13, hidden=64, eos_id=None),
    )
)


encode_text = jax.jit(lambda *inputs: MODEL.apply(*inputs, method="encode_text"))


def load(name: str, names) -> tuple[dict, dict, dict, dict]:
    """variables, batch, outputs and gradients of a golden, in our names and layouts."""
    golden = np.load(GOLDENS / f"{name}.npz")
    inputs = clip_names.group(golden, "inputs")
    batch = {
        "images": inputs["images"].transpose(0, 2, 3, 1),
        "input_ids": inputs["input_ids"].astype(np.int32),
        "attention_mask": inputs["attention_mask"].astype(bool),
    }
    variables = {"params": names(clip_names.group(golden, "weights"))}
    return variables, batch, clip_names.group(golden, "outputs"), names(clip_names.group(golden, "gradients"))


@pytest.fixture(scope="module")
def hf():
    return load("clip_hf", clip_names.from_hf)


@pytest.fixture(scope="module")
def open_clip():
    return load("clip_open_clip", clip_names.from_open_clip)


def compare_gradients(model: clip.CLIP, variables: dict, batch: dict, value, expected: dict) -> None:
    ours, gradients = jax.jit(jax.value_and_grad(lambda v: clip.loss(model, v, batch, None, 0)[0]))(variables)
    close("loss", ours, value, relative=1e-5)
    clip_names.close_trees(gradients["params"], expected, relative=1e-4)


def test_embeddings_and_logits_equal_transformers(hf):
    variables, batch, outputs, _ = hf
    out = jax.jit(MODEL.apply)(variables, batch["images"], batch["input_ids"], batch["attention_mask"])
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        close(name, getattr(out, name), outputs[name], relative=1e-5)


def test_loss_and_gradients_equal_transformers(hf):
    variables, batch, outputs, gradients = hf
    compare_gradients(MODEL, variables, batch, outputs["loss"], gradients)


def test_hidden_states_equal_transformers(hf):
    variables, batch, outputs, _ = hf
    golden = np.load(GOLDENS / "clip_hf.npz")
    tower = clip.VisionTower(VISION)
    apply = jax.jit(functools.partial(tower.apply, collect=True))
    out = apply({"params": variables["params"]["vision"]}, batch["images"])
    assert out.hidden_states.shape == (2, 3, 10, 24)
    for layer in range(2):
        close(f"layer {layer}", out.hidden_states[layer], golden[f"vision_hidden_states/{layer + 1}"], relative=1e-5)
    np.testing.assert_array_equal(out.last_hidden_state, out.hidden_states[-1])
    apply = jax.jit(clip.TextTower(TEXT).apply)
    text = apply({"params": variables["params"]["text"]}, batch["input_ids"], batch["attention_mask"])
    close("text", text.last_hidden_state, outputs["text_last_hidden_state"], relative=1e-5)


def test_without_an_end_id_the_highest_id_is_read(hf):
    variables, batch, outputs, _ = hf
    model = clip.CLIP(dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, eos_id=None)))
    embeds = jax.jit(lambda *inputs: model.apply(*inputs, method="encode_text"))(variables, batch["input_ids"])
    close("text_embeds", embeds, outputs["text_embeds_highest_id"], relative=1e-5)
    by_id = encode_text(variables, batch["input_ids"])
    assert np.abs(by_id - embeds)[0].max() > 0.01  # row 0 holds a higher id before its end
    np.testing.assert_allclose(by_id[1:], embeds[1:], atol=1e-6)


def test_outputs_loss_and_gradients_equal_open_clip(open_clip):
    variables, batch, outputs, gradients = open_clip
    batch = {key: batch[key] for key in ("images", "input_ids")}  # open_clip has no padding mask
    out = jax.jit(OPEN_CLIP.apply)(variables, **batch)
    for name in ("image_embeds", "text_embeds", "logit_scale"):
        close(name, getattr(out, name), outputs[name], relative=1e-5)
    compare_gradients(OPEN_CLIP, variables, batch, outputs["loss"], gradients)


def test_a_token_changes_nothing_before_it(hf):
    variables, batch, _, _ = hf
    text = jax.jit(clip.TextTower(TEXT).apply)
    ids, other = batch["input_ids"][:1], batch["input_ids"][:1].copy()
    other[0, 7] = 11 if other[0, 7] != 11 else 12
    a, b = (text({"params": variables["params"]["text"]}, i).last_hidden_state[0] for i in (ids, other))
    np.testing.assert_array_equal(a[:7], b[:7])
    assert (np.abs(a[7:] - b[7:]).max(-1) > 1e-4).all()


def test_padding_changes_nothing(hf):
    variables, batch, _, _ = hf
    ids, mask = batch["input_ids"][1:2], batch["attention_mask"][1:2]  # 5 tokens and 8 of padding
    expected = encode_text(variables, ids[:, :5])
    for fill in (0, 9):
        padded = np.where(mask, ids, fill)
        embeds = encode_text(variables, padded, mask)
        np.testing.assert_allclose(embeds, expected, atol=1e-5)


def test_masked_tokens_are_not_seen_even_before_the_end(hf):
    variables, batch, _, _ = hf
    ids, mask = batch["input_ids"][:1], np.ones((1, 13), bool)
    mask[0, 3] = False
    other = ids.copy()
    other[0, 3] = 7
    a, b = (encode_text(variables, i, mask) for i in (ids, other))
    np.testing.assert_array_equal(a, b)
    assert np.abs(encode_text(variables, ids) - a).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (clip.vit_b32, 151_277_313),
        (clip.vit_b16, 149_620_737),
        (clip.vit_l14, 427_616_513),
        (clip.vit_l14_336, 427_944_193),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(make, count):
    config = make()
    side = config.vision.image_size
    variables = jax.eval_shape(
        clip.CLIP(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros((1, 77), jnp.int32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


def test_initial_values_are_openais():
    config = dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(VISION, width=96, hidden=384),
        text=dataclasses.replace(TEXT, width=64, hidden=256, vocab_size=500),
    )
    key = jax.random.key(0, impl="rbg")  # compiles in half the time
    params = jax.jit(clip.CLIP(config).init)(key, np.zeros((1, 30, 30, 3)), np.zeros((1, 9), int))
    vision, text = params["params"]["vision"], params["params"]["text"]
    attention, mlp = text["layers"]["attention"], text["layers"]["mlp"]
    residual = 64**-0.5 * (2 * 3) ** -0.5
    deviations = {  # found, expected: specs by openai/CLIP's initialize_parameters and torch's defaults
        "embed": (text["embed"]["embedding"], 0.02),
        "pos_embed": (text["pos_embed"], 0.01),
        "query": (attention["query"]["kernel"], 64**-0.5),
        "out": (attention["out"]["kernel"], residual),
        "up": (mlp["up"]["kernel"], (2 * 64) ** -0.5),
        "up bias": (mlp["up"]["bias"], (3 * 64) ** -0.5),  # uniform(-b, b) has deviation b / sqrt(3)
        "down": (mlp["down"]["kernel"], residual),
        "down bias": (mlp["down"]["bias"], (3 * 256) ** -0.5),
        "vision query": (vision["layers"]["attention"]["query"]["kernel"], (2 / (96 + 3 * 96)) ** 0.5),
        "vision out": (vision["layers"]["attention"]["out"]["kernel"], (3 * 96) ** -0.5),
        "vision down": (vision["layers"]["mlp"]["down"]["kernel"], (3 * 384) ** -0.5),
        "patch": (vision["patch_embed"]["kernel"], (3 * 300) ** -0.5),
        "vision pos": (vision["pos_embed"], 96**-0.5),
        "projection": (params["params"]["text_projection"]["kernel"], 64**-0.5),
    }
    for name, (leaf, deviation) in deviations.items():
        assert np.std(leaf) == pytest.approx(deviation, rel=3 / math.sqrt(leaf.size)), name
    for tower in (vision, text):
        assert not any(tower["layers"]["attention"][name]["bias"].any() for name in ("query", "key", "value", "out"))
        layers = tower["layers"]["attention"]["query"]["kernel"]
        assert not np.allclose(layers[0], layers[1])
    assert params["params"]["logit_scale"] == pytest.approx(2.659260)


def test_scale_is_clamped_to_one_and_one_hundred():
    for value, expected in ((-1.0, 0.0), (3.0, 3.0), (9.0, 4.605170)):
        variables = {"params": {"logit_scale": jnp.array(value), "other": 9.0}, "ema": 9.0}
        after = clip.clamp_scale(variables, 0)
        assert after["params"]["logit_scale"] == pytest.approx(expected)
        assert (after["params"]["other"], after["ema"]) == (9.0, 9.0)


def test_zero_shot_weights_are_the_mean_over_templates_of_unit_vectors(hf):
    variables, batch, _, _ = hf
    other = {"input_ids": batch["input_ids"][:, ::-1], "attention_mask": None}
    weights = jax.jit(lambda *batches: clip.zero_shot_weights(MODEL, variables, batches))(batch, other)
    a = encode_text(variables, batch["input_ids"], batch["attention_mask"])
    b = encode_text(variables, other["input_ids"])
    for row in range(3):
        mean = (np.array(a[row]) + np.array(b[row])) / 2
        np.testing.assert_allclose(weights[row], mean / np.sqrt((mean**2).sum()), atol=1e-6)


def test_rows_of_equal_label_are_positives_of_each_other(hf):
    variables, batch, _, _ = hf
    out = jax.jit(MODEL.apply)(variables, batch["images"], batch["input_ids"], batch["attention_mask"])
    logits, positive = np.array(out.logits_per_image), np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    expected = 0
    for scores in (logits, logits.T):
        log_probability = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        expected -= ((log_probability * positive).sum(1) / positive.sum(1)).mean() / 2
    embeddings = {"image": out.image_embeds, "text": out.text_embeds}
    value, aux = clip.loss_of_embeddings(MODEL, variables, embeddings, {"label": np.array([4, 2, 4])}, 0)
    assert value == pytest.approx(expected, rel=1e-5)
    assert aux.metrics["logit_scale"] == pytest.approx(np.exp(variables["params"]["logit_scale"]))


def test_gradients_through_the_embeddings_are_those_of_the_loss(hf):
    """Task.cached: the chain rule by hand, over rows embedded one at a time, equals the gradient of the whole."""
    variables, batch, _, gradients = hf

    @jax.jit
    def embed_and_pull(variables, row, upstream):
        embeddings, pull = jax.vjp(lambda variables: clip.embed(MODEL, variables, row, None, 0), variables)
        return embeddings, pull(upstream)[0]

    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    nothing = {"image": np.zeros((1, 12), np.float32), "text": np.zeros((1, 12), np.float32)}
    embeddings = jax.tree.map(lambda *x: jnp.concatenate(x), *[embed_and_pull(variables, r, nothing)[0] for r in rows])
    total, upstream = jax.jit(
        jax.grad(lambda *inputs: clip.loss_of_embeddings(MODEL, *inputs, batch, 0)[0], argnums=(0, 1))
    )(variables, embeddings)
    for i, row in enumerate(rows):
        part = embed_and_pull(variables, row, jax.tree.map(lambda g, i=i: g[i : i + 1], upstream))[1]
        total = jax.tree.map(jnp.add, total, part)
    clip_names.close_trees(total["params"], gradients, relative=1e-4)


def test_bytes_are_normalised_by_the_models_constants(hf):
    variables, _, _, _ = hf
    model = clip.CLIP(dataclasses.replace(CONFIG, image_mean=clip.OPENAI_MEAN, image_std=clip.OPENAI_STD))
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3)).astype(np.uint8)
    floats = ((images / 255 - np.array(clip.OPENAI_MEAN)) / np.array(clip.OPENAI_STD)).astype(np.float32)
    encode = jax.jit(lambda images: model.apply(variables, images, method="encode_image"))
    a, b = encode(images), encode(floats)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_stays_near_float32(hf):
    variables, batch, outputs, _ = hf
    model = clip.CLIP(dataclasses.replace(CONFIG, compute=Compute(dtype=jnp.bfloat16)))
    out = jax.jit(model.apply)(variables, batch["images"], batch["input_ids"], batch["attention_mask"])
    assert out.image_embeds.dtype == jnp.float32  # lengths and losses are float32
    for name in ("image_embeds", "text_embeds"):  # 8 bits of mantissa through 5 layers
        np.testing.assert_allclose(getattr(out, name), outputs[name], atol=0.03)
    tower = clip.VisionTower(VISION, model.config.compute)
    hidden = jax.eval_shape(tower.apply, {"params": variables["params"]["vision"]}, batch["images"])
    assert hidden.last_hidden_state.dtype == jnp.bfloat16


def test_a_stem_leaves_as_many_tokens_as_the_patch_size_says():
    config = dataclasses.replace(clip.CLIPConfig.tiny().vision, stem=(4, 6))
    tower = clip.VisionTower(config)
    out, variables = jax.eval_shape(
        lambda images: tower.init_with_output(jax.random.key(0), images), jnp.zeros((2, 32, 32, 3))
    )
    assert out.last_hidden_state.shape == (2, 1 + 16, 16)
    assert variables["params"]["patch_embed"]["kernel"].shape == (2, 2, 6, 16)


def test_misshapen_input_is_refused_with_both_numbers(hf):
    variables, batch, _, _ = hf
    with pytest.raises(ValueError, match=r"images must be \[B 30 30 3\], got \[3, 32, 30, 3\]"):
        MODEL.apply(variables, np.zeros((3, 32, 30, 3), np.float32), method="encode_image")
    with pytest.raises(ValueError, match="at most 16 tokens a row, got 17"):
        MODEL.apply(variables, np.zeros((1, 17), int), method="encode_text")
    with pytest.raises(ValueError, match="patch_size=7"):
        dataclasses.replace(VISION, patch_size=7)
