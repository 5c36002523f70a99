"""LLaVA: equal to transformers and to the authors' splice, from goldens; a picture moves only its place."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import group
from llava_names import llava as named
from safetensors.numpy import load_file

from mmjax import weights
from mmjax.models import llama, llava
from mmjax.models.llava import put
from mmjax.nn import sampling
from mmjax.nn.lora import LoRA
from mmjax.ops.cross_entropy import IGNORED
from mmjax.weights.engine import flatten

GOLDENS = Path("tests/goldens")
NAMES = ("input_ids", "attention_mask", "labels")
FOLDERS = ("hf_llava", "hf_llava_legacy")


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, *args, **options):
    return model.apply(variables, *args, **options)


@pytest.fixture(scope="module", params=FOLDERS)
def case(request):
    folder = GOLDENS / request.param
    model, variables = weights.load_hf(folder)
    golden = dict(np.load(folder / "outputs.npz"))
    return model, variables, golden, llava.by_row(model.config, golden["input_ids"], golden["images"])


@pytest.fixture(scope="module")
def tiny():
    model = llava.Llava(llava.LlavaConfig.tiny())
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 16, 16, 3)))
    draw = lambda x, key: 0.3 * jax.random.normal(key, x.shape)  # noqa: E731
    leaves, tree = jax.tree.flatten(variables)
    return model, jax.tree.unflatten(tree, map(draw, leaves, jax.random.split(jax.random.key(1), len(leaves))))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16, 16, 3)).astype(np.float32)


def batch_of(golden: dict, rows: np.ndarray) -> dict:
    spoken = golden["labels"] != -100
    return {name: golden[name] for name in ("input_ids", "attention_mask")} | {"images": rows, "spoken": spoken}


def test_logits_equal_transformers(case):
    model, variables, golden, rows = case
    logits = apply(model, variables, golden["input_ids"], rows, golden["attention_mask"]).logits
    mask = golden["attention_mask"]
    np.testing.assert_allclose(logits[mask], golden["logits"][mask], atol=1e-4, rtol=1e-4)


def test_loss_and_gradients_equal_transformers(case):
    model, variables, golden, rows = case
    value = lambda v: llava.loss(model, v, batch_of(golden, rows), None, 0)[0]  # noqa: E731
    loss, found = jax.jit(jax.value_and_grad(value))(variables)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    wanted, params = group(golden, "gradient"), found["params"]
    tower = params["vision"]["layers"]
    ours = {
        "model.multi_modal_projector.linear_1.weight": params["projector"]["up"]["kernel"].T,
        "model.multi_modal_projector.linear_2.bias": params["projector"]["down"]["bias"],
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight": tower["mlp"]["up"]["kernel"][0].T,
        "model.vision_tower.encoder.layers.1.self_attn.q_proj.weight": tower["attention"]["query"]["kernel"][1].T,
        "model.language_model.layers.1.self_attn.q_proj.weight": params["language"]["layers"]["attention"]["query"][
            "kernel"
        ][1].T,
        "model.language_model.embed_tokens.weight": params["language"]["embed"]["embedding"],
    }
    assert ours.keys() == wanted.keys()
    for name, gradient in ours.items():
        assert np.abs(wanted[name]).max() > 1e-6, name
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    if model.config.layers == (-2,):  # the last block of the tower and its norm are not read
        assert not np.any(jax.tree.map(lambda x: np.abs(x[-1]).max(), tower["mlp"]["down"]["kernel"]))
        assert not np.any(params["vision"]["norm"]["scale"])


def test_generation_equals_transformers(case):
    model, variables, golden, rows = case
    prompt = golden["input_ids"][:1, : golden["attention_mask"][0].sum() - 3]
    first = {"images": rows[:1, :1]}
    out = sampling.generate(model, variables, prompt, max_new_tokens=6, inputs=first)
    np.testing.assert_array_equal(out.tokens, golden["generated"])
    # Padding on the left, as transformers wants it, changes no token.
    padded = np.pad(prompt, ((0, 0), (3, 0)))
    left = sampling.generate(model, variables, padded, padded > 0, max_new_tokens=6, inputs=first)
    np.testing.assert_array_equal(left.tokens, golden["generated"])


def test_weights_go_back_as_they_came(case, tmp_path):
    model, variables, golden, rows = case
    weights.save_hf(tmp_path, model, variables)
    again, loaded = weights.load_hf(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_the_authors_splice_gives_the_same_sequence():
    golden = np.load(GOLDENS / "llava.npz")
    image, (_, count, _) = 36, golden["features"].shape
    kept = [(row[mask], label[mask]) for row, mask, label in zip(*map(golden.get, NAMES), strict=True)]
    rows = [llava.expanded(np.where(ids == -200, image, ids).tolist(), image, count) for ids, _ in kept]
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows])
    config = dataclasses.replace(llava.LlavaConfig.tiny(), image_token=image, image_length=count)
    assert llava.images_in(config, ids) == [1, 2, 0]
    values = np.stack([np.concatenate(golden["features"][n : n + 2]) for n in (0, 1, 0)])  # the authors' order
    found = put(jnp.asarray(golden["embed"][ids]), jnp.asarray(ids == image), jnp.asarray(values))
    mask = golden["out_mask"]
    assert mask.sum(1).tolist() == [len(row) for row in rows]
    np.testing.assert_array_equal(np.asarray(found)[mask], golden["inputs_embeds"][mask])
    for (ids, label), out, mask in zip(kept, golden["out_labels"], golden["out_mask"], strict=True):
        learned = [[x] * (count if token == -200 else 1) for token, x in zip(ids, label, strict=True)]
        assert out[mask].tolist() == sum(learned, [])


def test_a_moved_picture_moves_its_vectors_and_nothing_else():
    rng = np.random.default_rng(0)
    embeds, values = (jnp.asarray(rng.normal(size=(1, n, 3)), jnp.float32) for n in (9, 4))
    for start in range(6):
        at = jnp.zeros((1, 9), bool).at[0, start : start + 4].set(True)
        found = put(embeds, at, values)
        np.testing.assert_array_equal(found[0, start : start + 4], values[0])
        np.testing.assert_array_equal(found[~at], embeds[~at])
    extra = put(embeds, jnp.ones((1, 9), bool), values)  # more places than vectors
    np.testing.assert_array_equal(extra[0, 4:], 0)


def test_a_batch_of_mixed_counts_equals_one_by_one(tiny):
    model, variables = tiny
    token, count = model.config.image_token, model.config.tokens_per_image
    texts = [[1, *[token] * count, 5, 6], [1, *[token] * count, 7, *[token] * count, 8], [1, 2, 3, 4]]
    length = max(map(len, texts))
    ids = np.array([text + [0] * (length - len(text)) for text in texts])
    mask = np.arange(length) < np.array([[len(text)] for text in texts])
    images = pictures(3)
    together = apply(model, variables, ids, llava.by_row(model.config, ids, images), mask).logits
    alone = [images[None, :1], images[None, 1:], None]
    for row, (text, image) in enumerate(zip(texts, alone, strict=True)):
        one = apply(model, variables, np.array([text]), image).logits[0]
        np.testing.assert_allclose(together[row, : len(text)], one, atol=1e-5)


def test_conversations_behind_one_picture_do_not_see_each_other(tiny):
    model, variables = tiny
    front = [1, *[model.config.image_token] * model.config.tokens_per_image]
    parts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    ids = np.array([front + sum(parts, [])])
    segments = np.array([[0] * len(front) + [n + 1 for n, part in enumerate(parts) for _ in part]])
    image = pictures(1)
    together = apply(model, variables, ids, image, None, None, segments).logits[0]
    start = len(front)
    for part in parts:
        alone = apply(model, variables, np.array([front + part]), image).logits[0, len(front) :]
        np.testing.assert_allclose(together[start : start + len(part)], alone, atol=1e-5)
        start += len(part)
    positions, allowed = llava.packed(segments, np.ones_like(segments, bool))
    n = len(front)
    assert positions[0].tolist() == [*range(n), n, n + 1, n + 2, n, n + 1, n, n + 1, n + 2, n + 3]
    assert not allowed[0, 0, n + 3, n : n + 3].any()
    assert allowed[0, 0, n + 3, :n].all()


def test_words_do_not_see_pictures_that_follow(tiny):
    model, variables = tiny
    ids = np.array([[1, 5, *[model.config.image_token] * 4, 6]])
    one, other = (apply(model, variables, ids, pictures(1, seed)).logits for seed in (0, 1))
    np.testing.assert_array_equal(one[:, :2], other[:, :2])
    assert np.abs(one[:, 2:] - other[:, 2:]).min(axis=-1).max() > 1e-4


def test_a_row_that_says_more_than_it_may_is_no_loss_at_all(tiny):
    model, variables = tiny
    rng, width = np.random.default_rng(0), model.config.language.width
    hidden, labels = rng.normal(size=(2, 9, width)).astype(np.float32), rng.integers(0, 50, (2, 9))
    labels[0, 3:] = labels[1, :7] = IGNORED  # 3 count, and 2
    nine, three, two = (llava.answer_loss(model, variables, hidden, labels, most)[0] for most in (9, 3, 2))
    np.testing.assert_allclose([nine, three], llava.answer_loss(model, variables, hidden, labels)[0], rtol=1e-6)
    assert np.isnan(two)


def test_stages_train_what_they_name(tiny):
    names = list(flatten(tiny[1]["params"]))
    assert {n.split("/")[0] for n in names if re.search(llava.ALIGN, n)} == {"projector"}
    assert {n.split("/")[0] for n in names if re.search(llava.INSTRUCT, n)} == {"projector", "language"}
    adapted = LoRA(tiny[0], llava.LORA, rank=2).add(tiny[1]["params"], jax.random.key(0))
    beside = {n.rsplit("/", 1)[0] for n in flatten(adapted) if n.endswith("lora_a")}
    assert len(beside) == 7
    assert all(n.startswith("language/layers/") for n in beside)


def test_linear_projector_and_cached_answers(tiny):
    config = dataclasses.replace(llava.LlavaConfig.tiny(), projector=llava.linear)
    model = llava.Llava(config)
    ids, image = np.array([[1, *[config.image_token] * 4, 5, 6, 7]]), pictures(1)
    variables = jax.jit(model.init)(jax.random.key(0), ids, image)
    assert set(variables["params"]["projector"]) == {"kernel", "bias"}
    whole = apply(model, variables, ids, image).logits
    extend = jax.jit(functools.partial(model.apply, method="extend"))
    cache, found = model.init_cache(1, 8), []
    for part, images in ((ids[:, :6], image), (ids[:, 6:7], None), (ids[:, 7:], None)):
        out, cache = extend(variables, part, cache, images=images)
        found.append(out.logits)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "projector", "language"),
    [(llava.llava_1_5_7b, 20_979_712, 6_738_415_616), (llava.llava_1_5_13b, 31_467_520, 13_015_864_320)],
)
def test_published_sizes(make, projector, language):
    config = make()
    model = llava.Llava(config)
    side = config.vision.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32), image)["params"]
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert count(params["projector"]) == projector
    # 64 rows more than LLaMA's 32,000, in the table and in the head.
    assert count(params["language"]) == language + 2 * 64 * config.language.width
    assert config.tokens_per_image == 576


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([[1, 63, 63, 63, 63, 5]], 2, "room for 1 images of 4 tokens .* got 2 images"),
        ([[1, 63, 63, 63, 63, 63, 63, 63, 63]], 1, "room for 2 images"),
        ([[1, 2, 3], [63, 63, 63, 5][:3]], 1, "row 1 has 3 image tokens .* takes 4"),
    ],
)
def test_pictures_and_places_that_do_not_match_are_refused(ids, images, message):
    with pytest.raises(ValueError, match=message):
        llava.by_row(llava.LlavaConfig.tiny(), np.array(ids), pictures(images))


def test_more_places_than_images_are_refused_where_numbers_are_known(tiny):
    model, variables = tiny[:2]
    ids = np.full((2, 2 * model.config.tokens_per_image), model.config.image_token)
    with pytest.raises(ValueError, match="row 0 of input_ids has 8 places for tokens of images, but its images have 4"):
        model.apply(variables, ids, pictures(2))


def test_wrong_configs_and_shapes_are_refused(tiny):
    model, variables = tiny
    with pytest.raises(ValueError, match="image_token must be an id of the vocabulary, 0 to 63, got -200"):
        dataclasses.replace(model.config, image_token=-200)
    with pytest.raises(ValueError, match="2 blocks, got"):
        dataclasses.replace(model.config, layers=(-3,))
    with pytest.raises(ValueError, match="got 2 rows and 1 images"):
        model.apply(variables, np.zeros((2, 6), np.int32), pictures(1))
    wrong = llava.Llava(dataclasses.replace(model.config, image_length=7))
    with pytest.raises(ValueError, match="became 4 tokens, but the config says 7"):
        wrong.apply(variables, np.zeros((1, 6), np.int32), pictures(1))
    linear = llava.Llava(dataclasses.replace(model.config, projector=llava.linear))
    with pytest.raises(ValueError, match="projector=<function linear"):
        weights.save_hf("nowhere", linear, variables)


def test_the_language_model_reads_words_as_it_did_alone(tiny):
    model, variables = tiny
    alone = llama.Llama(model.config.language)
    ids = np.array([[1, 5, 6, 7]])
    words = apply(alone, {"params": variables["params"]["language"]}, ids).logits
    np.testing.assert_allclose(apply(model, variables, ids).logits, words, atol=1e-5)


def test_names_are_those_of_the_loader():
    _, variables = weights.load_hf(GOLDENS / "hf_llava")
    expected = named(load_file(GOLDENS / "hf_llava" / "model.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)
