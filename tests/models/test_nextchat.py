"""NExT-Chat against NExT-ChatV/NExT-Chat (stored outputs, tests/goldens/make_nextchat.py), and what its places mean."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shikra_names
from clip_names import group
from closeness import close, close_trees

from mmjax.models import llama, llava, nextchat, shikra, vit
from mmjax.nn.mlp import quick_gelu
from mmjax.nn.sampling import Sampling
from mmjax.text import coordinates
from mmjax.weights import nextchat as weights
from mmjax.weights.engine import flatten

VISION = vit.ViTConfig(28, 14, width=12, depth=3, num_heads=3, hidden=20, activation=quick_gelu, epsilon=1e-5)
LANGUAGE = llama.LlamaConfig(45, 64, width=16, depth=2, num_heads=4, num_kv_heads=4, head_dim=4, hidden=22)
CONFIG = nextchat.NextChatConfig(VISION, LANGUAGE, image_token=40, at_token=43, box_token=44)
MODEL = nextchat.NextChat(CONFIG)
TERMS = ("l1", "giou", "cycle_states", "cycle_boxes")


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "goldens" / "nextchat.npz")


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": shikra_names.nextchat(shikra_names.weights_of(golden))}


@pytest.fixture(scope="module")
def batch(golden):
    """All rows but the last, whose weight is 1e-10, with their places by row."""
    rows = shikra_names.batch_of(golden)
    ids = rows["input_ids"]
    counts = (ids == CONFIG.box_token).sum(1)
    boxes = np.zeros((len(ids), counts.max() + 1, 4), np.float32)  # a place more than any row has
    boxes[np.arange(counts.max() + 1) < counts[:, None]] = golden["boxes"]
    images = np.zeros((len(ids), 28, 28, 3), np.float32)
    images[(ids == CONFIG.image_token).any(1)] = golden["images"]
    return {name: x[:-1] for name, x in {**rows, "boxes": boxes, "images": images}.items()}


@pytest.fixture(scope="module")
def trained(variables, batch):
    """Loss, its parts, and gradients of the loss and of each term."""

    def value(params, weights):
        total, aux = nextchat.loss(MODEL, {"params": params}, batch, None, 0)
        terms = jnp.stack([aux.metrics[name] for name in TERMS])
        return jnp.where(weights[0], total, (weights[1:] * terms).sum()), (total, aux.metrics)

    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    out = {name: step(variables["params"], jnp.eye(5)[i]) for i, name in enumerate(("loss", *TERMS))}
    return out["loss"][0][1], {name: gradients for name, (_, gradients) in out.items()}


def test_logits_and_boxes_equal_the_original(golden, variables, batch):
    args = (batch["input_ids"], batch["images"], batch["attention_mask"])
    out = jax.jit(lambda v, boxes: MODEL.apply(v, *args, boxes=boxes))(variables, batch["boxes"])
    mask = batch["attention_mask"]
    close("logits", out.logits[mask], golden["logits"][:-1][mask], relative=1e-5)
    spoken, exists = nextchat.take(batch["spoken"] | (batch["input_ids"] == 44), batch["input_ids"] == 43, 3)
    assert out.found.tolist() == exists.tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    learned = np.asarray(spoken & exists)
    close("boxes", out.boxes[learned], golden["found"][:-1], relative=1e-5)


def test_loss_its_terms_and_gradients_equal_the_original(golden, trained):
    (total, metrics), gradients = trained
    close("loss", total, golden["loss"], relative=1e-5)
    for name in TERMS:
        assert golden[f"term/{name}"] > 1e-3
        close(f"loss {name}", metrics[name], golden[f"term/{name}"], relative=1e-5)
    given = group(golden, "gradients")
    tower = {n: x for n, x in shikra_names.weights_of(golden).items() if n.startswith("tower.")}
    expected = shikra_names.nextchat(given | tower)
    names = {name.split("/")[0] for name in flatten(gradients["loss"]) if re.search(nextchat.BOX_STAGES, name)}
    assert names == {"projector", "language", "loc_encoder", "loc_decoder"}
    close_trees(*({n: tree[n] for n in names} for tree in (gradients["loss"], expected)), relative=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_teaches_encoder_and_decoder_as_in_the_original(golden, trained, name):
    ours = trained[1][name]
    theirs = group(golden, f"term_gradient/{name}")
    zeros = {n: np.zeros_like(x) for n, x in shikra_names.weights_of(golden).items() if n.startswith("loc_")}
    for part in ("loc_encoder", "loc_decoder"):
        for at, where in (("up", 0), ("down", 2)):
            flat = zeros | theirs
            expected = {"kernel": flat[f"{part}.{where}.weight"].T, "bias": flat[f"{part}.{where}.bias"]}
            close_trees(ours[part][at], expected, relative=1e-4)


def test_box_losses_equal_the_original_where_some_boxes_are_reversed(golden):
    pieces = group(golden, "pieces")
    mask = jnp.arange(7)[None] < 6  # the last one hardly counts there

    def value(found):
        distance, overlap = nextchat.box_losses(found, pieces["wanted"][None], mask)
        return 2 * distance + 0.2 * overlap

    loss, gradient = jax.jit(jax.value_and_grad(value))(pieces["found"][None])
    close("loss", loss, pieces["loss"], relative=1e-5)
    close("gradient", gradient[0], pieces["gradient"], relative=1e-4)
    assert not gradient[0, 6].any()


def test_nothing_to_point_at_is_no_loss_and_no_nan():
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[0, 0] = [0.5, 0.5, 0.1, 0.1]  # reversed
    overlap = jax.jit(jax.value_and_grad(lambda x, mask: nextchat.box_losses(x, jnp.zeros_like(x), mask)[1]))
    for mask in (np.zeros((2, 3), bool), np.arange(6).reshape(2, 3) == 0):
        value, gradient = overlap(boxes, mask)
        assert value == 0
        assert not gradient.any()


def test_take_is_the_way_back_of_put():
    rng = np.random.default_rng(0)
    at, values = rng.random((3, 9)) < 0.4, rng.normal(size=(3, 5, 2)).astype(np.float32)
    there_and_back = jax.jit(lambda at, values: nextchat.take(llava.put(jnp.zeros((3, 9, 2)), at, values), at, 5))
    found, exists = (np.asarray(x) for x in there_and_back(at, values))
    assert exists.sum(1).tolist() == np.minimum(at.sum(1), 5).tolist()
    np.testing.assert_array_equal(found[exists], values[exists])


def test_the_fixed_answer_is_read_as_in_the_original(golden, variables):
    """One pass over a prompt with its answer, as the authors measure referring expressions."""
    images = np.asarray(golden["images"][:1])
    out = jax.jit(MODEL.apply)(variables, golden["answer/ids"].astype(np.int32), images)
    close("box", out.boxes[:, 0], golden["answer/box"], relative=1e-5)


def test_an_answer_reads_the_boxes_that_it_has_just_said():
    """Written token by token, and read at once with its boxes given: the same states, tokens and boxes."""
    tiny = nextchat.NextChatConfig.tiny()
    c = dataclasses.replace(tiny, language=dataclasses.replace(tiny.language, depth=1))
    model = nextchat.NextChat(c)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
    draw = lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    # A head that likes <at> in about half of all states, so that there is a place to speak of.
    variables["params"]["language"]["head"]["kernel"][:, c.at_token] *= 9
    prompt = np.array([[1, 5, 6, 7], [1, 9, 8, 7]], np.int32)
    said = nextchat.generate(model, variables, prompt, max_new_tokens=9, sampling=Sampling(stop_ids=(2,)))
    read = jax.jit(lambda ids, boxes: model.apply(variables, ids, boxes=boxes))
    for row in range(2):
        tokens, found, boxes = (np.asarray(x[row]) for x in (said.tokens, said.found, said.boxes))
        assert found[:-1].any()
        assert (tokens[1:][found[:-1]] == c.box_token).all()  # <boxes> always follows
        given = np.zeros((9, 4), np.float32)
        given[: found.sum()] = boxes[found]
        whole = read(np.append(prompt[row], tokens)[None], given[None])
        np.testing.assert_allclose(whole.boxes[0, : found.sum()], boxes[found], atol=1e-4)
        greedy = np.asarray(whole.logits[0, 3:-1].argmax(-1))
        free = np.append(True, ~found[:-1]) & (np.arange(9) < said.lengths[row])
        np.testing.assert_array_equal(tokens[free], greedy[free])


def test_weights_load_and_go_back_as_they_came(golden, variables):
    theirs = {n: x for n, x in shikra_names.weights_of(golden).items() if not n.startswith("tower.")}
    loaded = weights.load(MODEL, theirs, {"vision": variables["params"]["vision"]})
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    again = weights.save(MODEL, loaded)
    assert again.keys() == theirs.keys()
    for name, x in again.items():
        np.testing.assert_array_equal(x, theirs[name])
    with pytest.raises(ValueError, match="two layers, projector=llava.mlp, got linear"):
        weights.rules(nextchat.NextChat(dataclasses.replace(CONFIG, projector=llava.linear)))


def test_places_stand_in_the_text_as_pairs():
    pairs = nextchat.Pairs()
    box = [0.1, 0.2, 0.3, 0.4]
    text = coordinates.fill("one <boxes> two <boxes>.", [[box], [box, box]], form=pairs)
    assert text == "one <at> <boxes> two <at> <boxes> <at> <boxes>."
    said = shikra.refer("it", box, form=pairs)
    assert said[1]["content"] == "Answer: <at> <boxes> ."
    with pytest.raises(ValueError, match="boxes of 4 numbers"):
        pairs.write([[0.1, 0.2]])


def test_the_papers_weight_is_a_field_and_ids_are_checked():
    assert (CONFIG.l1_weight, CONFIG.giou_weight, CONFIG.cycle_weight) == (2, 0.2, 1)
    with pytest.raises(ValueError, match=r"three ids below 45, got \(40, 43, 45\)"):
        dataclasses.replace(CONFIG, box_token=45)
    with pytest.raises(ValueError, match=r"boxes must be \[B K 4\] with B=1"):
        MODEL.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), boxes=jnp.zeros((2, 1, 4)))


def test_published_sizes():
    c = nextchat.nextchat_7b()
    assert (c.tokens_per_image, c.vocab_size, c.at_token, c.box_token) == (576, 32_005, 32_003, 32_004)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    for module, inputs, size in (
        (nextchat.TwoLayers(2048, 4096), 4, 8_402_944),
        (nextchat.TwoLayers(2048, 4), 4096, 8_398_852),
    ):
        params = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, inputs), jnp.float32))
        assert count(params) == size
    assert nextchat.nextchat_13b().language.width == 5120
