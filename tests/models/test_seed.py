"""SEED against AILab-CVC/SEED's own code (stored, tests/goldens/make_seed.py), then what users rely on."""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from safetensors.numpy import save_file

from mmjax import weights
from mmjax.models import clip, diffusion, qformer, seed, vit
from mmjax.nn.mlp import MLP
from mmjax.nn.quantizers import Codebook
from mmjax.ops import masks
from mmjax.train import trees
from mmjax.weights import blip2 as blip2_weights
from mmjax.weights import engine
from mmjax.weights import seed as seed_weights

GOLDEN = Path(__file__).parents[1] / "goldens" / "seed.npz"
VISION = vit.ViTConfig(8, 4, width=10, depth=2, num_heads=2, hidden=15, epsilon=1e-5)
QFORMER = qformer.QFormerConfig(
    32, 10, vocab_size=17, length=6, width=12, depth=4, num_heads=3, hidden=16, start_id=16, dropout=0.0
)
FIRST = seed.Stage1(qformer.RetrievalConfig(VISION, QFORMER, embed_dim=7))


def given(variables, batch) -> seed.Targets:
    return seed.Targets(batch["target_image"], batch.get("target_text"))


DOWN = seed.SeedConfig(
    VISION, QFORMER, given, Codebook(16, 4, commitment=1.0, codebook=0.25), depth=2, image_dim=9, text_dim=5,
    image_head=functools.partial(seed.Down, sizes=(8, 6, 3)),
)  # fmt: skip
REVERSE = dataclasses.replace(
    DOWN, image_head=functools.partial(seed.Reverse, depth=1),
    text_head=functools.partial(seed.Reverse, queries=3, depth=1),
)  # fmt: skip
SECOND, THIRD = seed.Seed(REVERSE), seed.Seed(DOWN)


@pytest.fixture(scope="module", autouse=True)
def known_shapes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_weights, "abstract", functools.cache(seed_weights.abstract))
        yield


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


def unpacked(golden, group: str) -> dict[str, np.ndarray]:
    flat, start, out = golden[group].astype(np.float32), 0, {}
    for name, shape in json.loads(str(golden[f"{group}/layout"])).items():
        stop = start + math.prod(shape)
        out[name], start = flat[start:stop].reshape(shape), stop
    assert start == len(flat)
    return out


@pytest.fixture(scope="module")
def tensors(golden):
    """Theirs, by name, of the three models."""
    first, second, third = (unpacked(golden, f"{group}/weights") for group in ("stage1", "stage2", "down"))
    of = lambda model, found: {name: found[name] for name in places(model) if not name.endswith("k_bias")}  # noqa: E731
    return {FIRST: first, SECOND: of(SECOND, first | second), THIRD: of(THIRD, first | second | third)}


def places(model) -> dict:
    return engine.places(seed_weights.RULES(model), engine.flatten(seed_weights.abstract(model)["params"]), "SEED")


@pytest.fixture(scope="module")
def variables(tensors):
    return {model: {**seed_weights.load(model, found), "target": {}} for model, found in tensors.items()}


@pytest.fixture(scope="module")
def batch(golden):
    found = {name.removeprefix("inputs/"): golden[name] for name in golden if name.startswith("inputs/")}
    return {
        "images": found["images"].transpose(0, 2, 3, 1),
        "input_ids": found["input_ids"].astype(np.int32),
        "attention_mask": found["attention_mask"].astype(bool),
        "target_image": found["target_image"],
        "target_text": found["target_text"],
    }


class Spy:
    """A model that remembers what it said last."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def apply(self, *args, **kwargs):
        self.said = self.model.apply(*args, **kwargs)
        return self.said


def differentiated(model, loss, params, batch):
    """The loss, its parts and what the model said on the way, and gradients of all parameters."""

    def value(params, batch):
        spy = Spy(model)
        total, aux = loss(spy, {"params": params, "target": {}}, batch, jax.random.key(0), 0)
        return total, (dict(aux.metrics), spy.said)

    (total, (parts, said)), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(params, batch)
    return total, parts, said, gradients


def assert_gradients(golden, group: str, tensors: dict, model, found: dict, trainable: str) -> None:
    """Of what is trained, and of which the golden holds gradients."""
    theirs = unpacked(golden, f"{group}/gradients")
    filled = {name: theirs.get(name, np.full_like(x, np.nan)) for name, x in tensors[model].items()}
    wanted = engine.flatten(seed_weights.load(model, filled)["params"])
    compared = 0
    for path, ours in engine.flatten(found).items():
        if re.search(trainable, path) and not np.isnan(wanted[path]).all():
            close(path, ours, wanted[path], relative=1e-4, part="gradient")
            compared += 1
    assert compared >= 15


# --- AILab-CVC/SEED


def test_stage_1_equals_the_original(golden, tensors, variables, batch):
    loss, _, said, gradients = differentiated(FIRST, seed.stage1_loss, variables[FIRST]["params"], batch)
    close("image_embeds", said.image_embeds, golden["stage1/image_embeds"], relative=1e-5)
    close("text_embeds", said.text_embeds, golden["stage1/text_embeds"], relative=1e-5)
    close("loss", loss, golden["stage1/loss"], relative=1e-5)
    assert_gradients(golden, "stage1", tensors, FIRST, gradients, seed.STAGE1_TRAINABLE)


@pytest.fixture(scope="module")
def stage2(variables, batch):
    loss, parts, (said, _), gradients = differentiated(SECOND, seed.loss, variables[SECOND]["params"], batch)
    return loss, parts, said, gradients


def test_what_stage_2_finds_equals_the_original(golden, stage2):
    said = stage2[2]
    close("queries", said.queries, golden["stage2/queries"], relative=1e-5)
    np.testing.assert_array_equal(said.quantized.ids, golden["stage2/ids"])
    close("quantized", said.quantized.latents, golden["stage2/quantized"], relative=1e-5)
    for name in ("reconstruction", "image", "text"):
        close(name, getattr(said, name), golden[f"stage2/{name}"], relative=1e-5)
    close("features", said.image, golden["stage2/features"], relative=1e-5)


def test_the_loss_of_stage_2_equals_the_original_part_by_part(golden, tensors, stage2):
    loss, parts, _, gradients = stage2
    close("loss", loss, golden["stage2/loss"], relative=1e-5)
    weights = {"codes": 5, "image": 0.5, "text": 0.5, "reconstruction": 2}
    for name, weight in weights.items():
        theirs = golden[f"stage2/{name}" + ("" if name == "codes" else "_error")]
        close(f"loss of {name}", weight * parts[name], theirs, relative=1e-5)
    assert_gradients(golden, "stage2", tensors, SECOND, gradients, seed.TRAINABLE)


def test_what_is_frozen_in_stage_2_has_no_gradient(variables, stage2):
    found = trees.leaves(stage2[-1])
    trained = trees.leaves(trees.select(variables[SECOND]["params"], seed.TRAINABLE))
    frozen = {path for path in found if path not in trained}
    assert {path.split("/")[0] for path in frozen} == {"vision", "qformer", "query_tokens"}
    assert all((np.asarray(found[path]) == 0).all() for path in frozen)
    silent = [path for path in trained if not np.asarray(found[path]).any()]
    one = re.compile("image_head/qformer/.*/attention/(query|key)/")  # a query that is alone looks at itself
    assert [path for path in silent if not one.match(path)] == []


def test_the_released_class_makes_the_same_of_ids(golden, variables):
    ids = golden["down/released/ids"]
    features = jax.jit(functools.partial(THIRD.apply, method="features_of"))(variables[THIRD], ids)
    close("features", features, golden["down/released/features"], relative=1e-5)


@pytest.mark.slow
def test_the_loss_without_a_reverse_q_former_equals_the_original(golden, tensors, variables, batch):
    alone = {name: x for name, x in batch.items() if name != "target_text"}
    loss, _, (said, _), gradients = differentiated(THIRD, seed.loss, variables[THIRD]["params"], alone)
    close("loss", loss, golden["down/loss"], relative=1e-5)
    close("image", said.image, golden["down/image"], relative=1e-5)
    assert_gradients(golden, "down", tensors, THIRD, gradients, seed.TRAINABLE)


def test_codes_are_the_nearest_and_learn_as_in_taming_transformers(golden, tensors, stage2):
    """The formulas, in float64."""
    z, codes = (x.astype(np.float64) for x in (golden["stage2/z"], tensors[SECOND]["quantize.embedding.weight"]))
    ids = np.square(z[..., None, :] - codes).sum(-1).argmin(-1)
    quantized = stage2[2].quantized
    np.testing.assert_array_equal(quantized.ids, ids)
    apart = np.square(codes[ids] - z).mean()
    np.testing.assert_allclose(quantized.loss, apart + 0.25 * apart, rtol=1e-5)


def test_a_causal_q_former_of_transformers_with_other_numbers_of_queries(golden):
    tensors = unpacked(golden, "former/weights")
    c = qformer.QFormerConfig(5, 10, width=12, depth=3, num_heads=2, hidden=14, text=False, dropout=0.0)
    model = qformer.QFormer(c)
    rules, target = blip2_weights.RULES(model), blip2_weights.abstract(model)["params"]
    params = engine.load(rules, tensors, target, format="transformers", source="golden")
    run = jax.jit(lambda queries, states: model.apply({"params": params}, queries, states, mask=masks.Causal()).queries)
    output = run(golden["former/queries"], golden["former/states"])
    close("output", output, golden["former/output"], relative=1e-5)


# --- causality


def test_ids_do_not_depend_on_later_queries(golden, variables, batch):
    both = lambda model, images: (queries := model.find(images), model.quantise(queries).ids)  # noqa: E731
    find = jax.jit(functools.partial(THIRD.apply, method=both))
    params = variables[THIRD]["params"]
    before, ids = find({"params": params}, batch["images"])
    np.testing.assert_array_equal(ids, golden["down/released/ids"])
    for j in (1, 20, 31):
        moved = {**params, "query_tokens": jnp.asarray(params["query_tokens"]).at[j].multiply(-2)}
        after, other = find({"params": moved}, batch["images"])
        np.testing.assert_array_equal(after[:, :j], before[:, :j])
        np.testing.assert_array_equal(other[:, :j], ids[:, :j])
        assert (np.abs(after - before).max(-1)[:, j:] > 0).all()


def test_the_contrast_reads_the_last_query_only(variables, batch, monkeypatch):
    queries = np.random.default_rng(0).normal(size=(3, 32, 12)).astype(np.float32)

    def of(queries):
        monkeypatch.setattr(seed, "look", lambda *args, **kwargs: queries)
        return FIRST.apply(variables[FIRST], batch["images"], method="encode_image")[:, 0].sum()

    gradient = np.asarray(jax.jit(jax.grad(of))(queries))
    assert (gradient[:, :-1] == 0).all()
    assert (np.abs(gradient[:, -1]).max(-1) > 1e-4).all()


# --- from stage to stage


def test_stage_2_begins_with_what_stage_1_learned(variables):
    begun = seed.frozen_of(variables[FIRST]["params"])
    frozen = {name: variables[SECOND]["params"][name] for name in ("vision", "qformer", "query_tokens")}
    jax.tree.map(np.testing.assert_array_equal, begun, frozen)


@pytest.mark.slow
def test_the_default_target_is_clip_before_it_is_normalised():
    model = clip.CLIP(clip.CLIPConfig.tiny())
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        "input_ids": rng.integers(1, 512, (2, 6), np.int32),
    }
    variables = jax.jit(model.init)(jax.random.key(0), **batch)
    target = jax.jit(functools.partial(seed.clip_target, model, text=True))(variables, batch)
    out = model.apply(variables, **batch)
    np.testing.assert_allclose(clip.normalise(target.image), out.image_embeds, rtol=1e-4, atol=1e-6)
    assert (np.abs(np.linalg.norm(target.image, axis=-1) - 1) > 1e-2).all()
    assert target.text.shape == (2, 6, 16)
    without = {"params": {name: x for name, x in variables["params"].items() if name != "text"}}
    alone = seed.clip_target(model, without, {"images": batch["images"]})
    close("alone", alone.image, target.image, relative=1e-5)
    assert alone.text is None


def test_a_decoder_learns_from_what_the_target_says(batch):
    c = diffusion.DiTConfig((8, 8), 3, 4, 8, 1, 2, 8, diffusion.Signal, drop=0.0, learn_variance=False)
    decoder, key = diffusion.DiT(c), jax.random.key(1)

    def objective(*args):
        return args

    model, own, told, *rest = seed.decoder_loss(
        decoder, {"params": 1, "target": {}}, batch, key, 2, target=given, objective=objective
    )  # fmt: skip
    assert (model, own, rest) == (decoder, {"params": 1}, [key, 2])
    np.testing.assert_array_equal(told["condition"], batch["target_image"])
    np.testing.assert_array_equal(told["images"], batch["images"])
    pixels = np.full((3, 8, 8, 3), 255, np.uint8)
    seen = lambda batch: seed.decoder_loss(decoder, {"target": {}}, batch, key, 2, target=given, objective=objective)[2]  # noqa: E731
    np.testing.assert_array_equal(seen({**batch, "images": pixels})["images"], np.ones((3, 8, 8, 3)))
    np.testing.assert_array_equal(seen({**batch, "drawn": pixels})["images"], pixels)


@pytest.mark.slow
def test_a_decoder_draws_what_ids_say(variables, batch):
    c = diffusion.DiTConfig((8, 8), 3, 4, 8, 1, 2, 8, diffusion.Signal, drop=0.0, learn_variance=False)
    decoder, drawn = diffusion.DiT(c), np.zeros((3, 8, 8, 3), np.float32)
    own = jax.tree.map(lambda x: x + 0.1, jax.jit(decoder.init)(jax.random.key(0), drawn, batch["target_image"]))
    own = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), own)
    seen = jax.device_put(variables[THIRD])
    draw = jax.jit(lambda ids: seed.to_images(THIRD, seen, ids, decoder, own, jax.random.key(2), steps=2))
    ids = np.tile(np.arange(32) % 16, (3, 1)).astype(np.int32)
    images = draw(ids)
    assert images.shape == (3, 8, 8, 3)
    condition = THIRD.apply(seen, ids, method="features_of")
    again = jax.jit(lambda x: diffusion.sample_flow(decoder, own, jax.random.key(2), x, steps=2))(condition)
    close("images", images, again, relative=1e-5)
    other = draw(np.where(np.arange(3)[:, None] == 1, 15 - ids, ids))
    moved = np.abs(other - images).max((1, 2, 3))
    np.testing.assert_array_equal(moved > 1e-5, [False, True, False])


# --- weights


@pytest.mark.parametrize("model", [FIRST, SECOND, THIRD], ids=["stage 1", "reverse", "down"])
def test_weights_go_there_and_back(tensors, variables, model):
    saved = seed_weights.save(model, variables[model])
    assert saved.keys() == tensors[model].keys()
    for name, x in tensors[model].items():
        np.testing.assert_array_equal(saved[name], x)


def test_a_file_of_the_original_is_read_and_what_does_not_fit_is_named(tmp_path, tensors, variables):
    theirs = {name: np.ascontiguousarray(x) for name, x in tensors[THIRD].items()}
    save_file({**theirs, "clip_model.x": np.zeros(1, np.float32)}, tmp_path / "seed.safetensors")
    model, loaded = weights.load_seed(tmp_path / "seed.safetensors", DOWN)
    assert model == THIRD
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables[THIRD]["params"])
    save_file({f"model.{name}": x for name, x in theirs.items()}, tmp_path / "trained.safetensors")
    _, loaded = weights.load_seed(tmp_path / "trained.safetensors", DOWN)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables[THIRD]["params"])
    with pytest.raises(ValueError, match="missing reverse_tokens.*unknown image_down"):
        weights.load_seed(tmp_path / "seed.safetensors", REVERSE)
    other = dataclasses.replace(DOWN, quantizer=Codebook(8, 4))
    with pytest.raises(ValueError, match=r"quantize.embedding.weight is \[16, 4\], expected \[8, 4\]"):
        weights.load_seed(tmp_path / "seed.safetensors", other)
    with pytest.raises(ValueError, match=r"heads of seed.Down and seed.Reverse, got MLP"):
        seed_weights.RULES(seed.Seed(dataclasses.replace(DOWN, image_head=lambda c, features: MLP(features))))


def count(model) -> int:
    return sum(x.size for x in jax.tree.leaves(seed_weights.abstract(model)))


@pytest.mark.slow
def test_published_sizes_of_what_is_not_released():
    c = seed.seed_tokenizer()
    text = functools.partial(seed.Reverse, queries=77)
    assert count(seed.Seed(dataclasses.replace(c, image_head=seed.Reverse))) == 1_182_639_424
    assert count(seed.Seed(dataclasses.replace(c, text_head=text))) == 1_212_160_064
    assert count(seed.Stage1(qformer.vit_g())) == 1_172_030_721


def test_published_sizes():
    shapes = engine.flatten(seed_weights.abstract(seed.Seed(seed.seed_tokenizer()))["params"])
    assert sum(x.size for x in shapes.values()) == 1_150_053_440
    assert shapes["quantizer/codes"].shape == (8192, 32)
    assert shapes["image_head/out/kernel"].shape == (32 * 32, 1024)


# --- what is refused


def test_errors_say_what_to_do(variables, batch):
    with pytest.raises(ValueError, match='the collection "target"'):
        seed.loss(SECOND, {"params": {}}, batch, jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"ids must be \[B 32\], got \[3, 4\]"):
        THIRD.apply(variables[THIRD], np.zeros((3, 4), np.int32), method="features_of")
    with pytest.raises(ValueError, match="no text branch"):
        THIRD.apply(variables[THIRD], np.zeros((3, 32), np.int32), method="text_states_of")
    with pytest.raises(ValueError, match="at most 6 tokens, got 7"):
        FIRST.apply(variables[FIRST], np.zeros((1, 7), np.int32), method="encode_text")
    with pytest.raises(ValueError, match="image_width must be vision.width=10, got 11"):
        dataclasses.replace(DOWN, qformer=dataclasses.replace(QFORMER, image_width=11))
