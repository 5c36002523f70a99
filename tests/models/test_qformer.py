"""Q-Former against LAVIS on two processes (stored outputs, tests/goldens/make_qformer.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qformer_names
from closeness import close, close_trees

from mmjax.evals import rerank
from mmjax.models import qformer, vit
from mmjax.nn import sampling
from mmjax.nn.stack import Compute
from mmjax.ops import masks

GOLDEN = Path(__file__).parents[1] / "goldens" / "qformer.npz"
VISION = vit.ViTConfig(12, 4, width=12, depth=2, num_heads=2, hidden=20, epsilon=1e-5)
QFORMER = qformer.QFormerConfig(
    5, 12, vocab_size=61, length=9, width=16, depth=3, num_heads=2, hidden=24, start_id=60, dropout=0.0
)
MODEL = qformer.Stage1(qformer.RetrievalConfig(VISION, QFORMER, embed_dim=8))


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": qformer_names.from_lavis(clip_names.group(golden, "weights"), 3, 2)}


@pytest.fixture(scope="module")
def batch(golden):
    return {
        "images": golden["inputs/images"].transpose(0, 2, 3, 1),
        "input_ids": golden["inputs/input_ids"].astype(np.int32),
        "attention_mask": golden["inputs/attention_mask"].astype(bool),
    }


# Compiled once for all tests.
first_pass = jax.jit(MODEL.apply)
match = jax.jit(functools.partial(MODEL.apply, method="match"))
extend = jax.jit(functools.partial(MODEL.apply, method="extend"))


@pytest.fixture(scope="module")
def read(variables, batch):
    return first_pass(variables, **batch)


def test_the_tree_is_the_models(variables, batch):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), **batch)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)


# --- LAVIS


def test_both_sides_of_the_contrast_equal_the_original(golden, read):
    close("image_embeds", read.image_embeds, golden["outputs/image_embeds"], relative=1e-5)
    close("text_embeds", read.text_embeds, golden["outputs/text_embeds"], relative=1e-5)


def test_captions_in_one_call_equal_the_original_over_cached_keys(golden, variables, batch, read):
    logits = read.captions @ MODEL.head(variables["params"])
    counted = batch["attention_mask"]
    close("captions", logits[counted], golden["outputs/captions"][counted], relative=1e-5)


def table(variables, states, ids, mask) -> np.ndarray:
    """Every picture with every text: [B B 2] logits."""
    pictures, texts = np.divmod(np.arange(16), 4)
    return match(variables, states[pictures], ids[texts], mask[texts]).reshape(4, 4, 2)


@pytest.fixture(scope="module")
def logits(variables, batch, read):
    return table(variables, read.states, batch["input_ids"], batch["attention_mask"])


def test_matches_equal_the_original(golden, logits):
    image, text, rows = golden["inputs/image"], golden["inputs/text"], np.arange(4)
    found = np.concatenate([logits[rows, rows], logits[image, rows], logits[rows, text]])
    close("match", found, golden["outputs/match"], relative=1e-5)


def test_scores_of_retrieval_equal_the_original(golden, logits, read):
    cosines = qformer.strongest(read.image_embeds, read.text_embeds)
    found = rerank.reranked(lambda row, candidates: logits[row, candidates, 1], cosines, 2)
    close("scores of texts", found, golden["outputs/scores"], relative=1e-5)
    found = rerank.reranked(lambda row, candidates: logits[candidates, row, 1], cosines.T, 2)
    close("scores of pictures", found, golden["outputs/text_scores"], relative=1e-5)


@pytest.fixture(scope="module")
def compiled_loss(golden, variables):
    """Of what is trained, with the negatives of the golden: the loss, its parts and the logits that it draws by."""
    drawn = {}

    def draw(rng, to_text, to_image, positive):
        drawn["logits"] = jnp.where(positive, qformer.NEVER, jnp.stack([to_image, to_text]))
        return golden["inputs/image"], golden["inputs/text"]

    def value(params, batch):
        params = {**params, "vision": {**variables["params"]["vision"], **params["vision"]}}
        total, aux = qformer.loss(MODEL, {"params": params}, batch, jax.random.key(0), 0, draw=draw)
        return total, (dict(aux.metrics), drawn["logits"])

    return jax.jit(jax.value_and_grad(value, has_aux=True))


@pytest.mark.parametrize("case", ["plain", "ids"])
def test_losses_and_gradients_equal_two_processes_of_the_original(golden, variables, batch, compiled_loss, case):
    ids = golden["inputs/image_id"].astype(np.int32) if case == "ids" else np.arange(4, dtype=np.int32)
    wanted = qformer_names.from_lavis(clip_names.group(golden, f"{case}/gradients"), 3, 2)
    trained = {**variables["params"], "vision": {"norm": variables["params"]["vision"]["norm"]}}
    (total, (metrics, logits)), gradients = compiled_loss(trained, batch | {"image_id": ids})
    for name in ("itc", "itm", "itg"):
        close(f"loss {name}", metrics[name], golden[f"{case}/{name}"], relative=1e-5)
    np.testing.assert_allclose(total, metrics["itc"] + metrics["itm"] + metrics["itg"], rtol=1e-6)
    close_trees(gradients, wanted, relative=1e-4)
    chances = jax.nn.softmax(logits)
    close("image chances", chances[0], golden[f"{case}/image_chances"], relative=1e-5)
    close("text chances", chances[1], golden[f"{case}/text_chances"], relative=1e-5)


# --- who may look at whom


def test_a_caption_sees_no_later_word_and_queries_see_no_text(variables, batch, read):
    other = batch["input_ids"].copy()
    other[:, 3] += 1
    changed = first_pass(variables, **(batch | {"input_ids": other}))
    np.testing.assert_array_equal(read.image_embeds, changed.image_embeds)
    np.testing.assert_array_equal(read.captions[:, :3], changed.captions[:, :3])
    assert (np.abs(read.captions[:, 3] - changed.captions[:, 3]).max(-1) > 1e-3).all()
    assert (np.abs(read.text_embeds - changed.text_embeds).max(-1) > 1e-4).all()  # which sees both ways


def test_padding_is_seen_by_none(variables, batch, read, logits):
    other = np.where(batch["attention_mask"], batch["input_ids"], 33)
    changed = first_pass(variables, **(batch | {"input_ids": other}))
    np.testing.assert_array_equal(read.text_embeds, changed.text_embeds)
    counted = batch["attention_mask"]
    np.testing.assert_array_equal(read.captions[counted], changed.captions[counted])
    np.testing.assert_array_equal(logits, table(variables, read.states, other, counted))


def test_a_match_sees_the_whole_text(variables, batch, read, logits):
    other = batch["input_ids"].copy()
    other[:, 3] += 1
    changed = table(variables, read.states, other, batch["attention_mask"])
    assert (np.abs(changed - logits).max(-1) > 1e-4).all()


def test_masks_are_the_table_of_the_fact_sheet():
    valid = np.array([[True, True, True], [True, True, False]])
    q, t = 2, 3
    wanted = np.zeros((2, q + t, q + t), bool)
    wanted[:, :q, :q] = wanted[:, q:, :q] = True
    wanted[:, q:, q:] = np.tril(np.ones((t, t), bool))
    wanted[1, :, q + 2] = False
    np.testing.assert_array_equal(qformer.captioning(jnp.array(valid), q).dense(5, 5)[:, 0], wanted)
    wanted[:] = True
    wanted[1, :, q + 2] = False
    np.testing.assert_array_equal(qformer.matching(jnp.array(valid), q).dense(5, 5)[:, 0], wanted)
    assert isinstance(masks.parts(qformer.captioning(jnp.array(valid), q))[0], masks.Prefix)  # which a TPU skips


# --- captions, word by word


def test_captions_over_a_cache_are_those_of_one_call(variables, batch):
    text = np.concatenate([np.full((4, 1), 60), batch["input_ids"][:, 1:]], axis=1).astype(np.int32)
    whole = first_pass(variables, batch["images"], text, np.ones((4, 6), bool)).captions
    whole = whole @ MODEL.head(variables["params"])
    out, cache = extend(variables, text[:, :1], MODEL.init_cache(4, 6), images=batch["images"])
    close("cached prompt", out.logits[:, 0], whole[:, 0], relative=1e-5)
    for i in range(1, 6):
        out, cache = extend(variables, text[:, i : i + 1], cache)
        close("cached word", out.logits[:, 0], whole[:, i], relative=1e-5)


@pytest.mark.slow
def test_generated_captions_are_the_likeliest_words(variables, batch):
    first = np.full((4, 1), 60, np.int32)
    greedy = sampling.generate(MODEL, variables, first, max_new_tokens=5, inputs={"images": batch["images"]}).tokens
    text = np.concatenate([first, greedy], axis=1)
    whole = first_pass(variables, batch["images"], text, np.ones((4, 6), bool)).captions
    whole = whole @ MODEL.head(variables["params"])
    np.testing.assert_array_equal(jnp.argmax(whole[:, :-1], -1), greedy)


def test_captions_begin_with_images_and_go_on_without(variables, batch):
    ids = np.full((4, 1), 60, np.int32)
    cache = MODEL.init_cache(4, 4)
    with pytest.raises(ValueError, match="the first words of captions come with images"):
        MODEL.apply(variables, ids, cache, method="extend")
    with pytest.raises(ValueError, match="the first words of captions come with images"):
        MODEL.apply(variables, ids, cache.close(), images=batch["images"], method="extend")


# --- negatives


def test_negatives_are_drawn_by_their_chances_and_never_positive():
    rng = np.random.default_rng(0)
    to_text, to_image = rng.normal(size=(2, 4, 4)).astype(np.float32) * 2
    ids = np.array([0, 1, 0, 2])
    positive = jnp.array(ids[:, None] == ids[None])
    draw = jax.jit(jax.vmap(lambda key: jnp.stack(qformer.hard_negatives(key, to_text, to_image, positive))))
    drawn = draw(jax.random.split(jax.random.key(0), 20_000))  # [K 2 4]
    shares = jnp.stack([(drawn == i).mean(0) for i in range(4)], -1)  # [2 4 4]
    wanted = jax.nn.softmax(jnp.where(positive, -1e4, jnp.stack([to_image, to_text])))
    np.testing.assert_allclose(shares, wanted, atol=0.015)
    assert not shares[:, positive].any()


def test_equal_queries_give_the_gradient_to_one():
    embeds = jnp.ones((1, 3, 2))
    gradient = jax.grad(lambda x: qformer.strongest(x, jnp.ones((1, 2))).sum())(embeds)
    np.testing.assert_array_equal(gradient[0], [[1, 1], [0, 0], [0, 0]])


# --- the model in general


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_published_sizes():
    c = qformer.vit_g()
    ids = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(jax.eval_shape, qformer.Stage1(c).init, jax.random.key(0))
    params = init(jnp.zeros((1, 224, 224, 3)), ids)["params"]
    norm = 2 * 768
    assert count(params["qformer"]) - norm == 161_823_744
    assert count([params["qformer"], params["embed"], params["pos_embed"]]) == 185_660_160
    assert count(params["vision"]) == 985_952_256
    bare = qformer.QFormer(qformer.QFormerConfig(text=False))
    params = jax.eval_shape(bare.init, jax.random.key(0), jnp.zeros((1, 32, 768)), jnp.zeros((1, 3, 1408)))["params"]
    assert count(params) + 32 * 768 == 105_162_240


def bare(**fields) -> tuple:
    """A Q-Former of one period on 2 pictures with 3 words each, as a compiled function of its key."""
    model = qformer.QFormer(dataclasses.replace(QFORMER, depth=2, **fields))
    rng = np.random.default_rng(0)
    queries, states, words = (rng.normal(size=(2, n, d)).astype(np.float32) for n, d in ((5, 16), (4, 12), (3, 16)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), queries, states, None, words)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.3, shapes)
    apply = functools.partial(model.apply, variables, queries, states, None, words)
    return jax.jit(lambda rng, train: apply(train=train, rngs={"dropout": rng}).last_hidden_state, static_argnums=1)


@pytest.mark.slow
def test_dropout_is_drawn_in_training_only():
    run = bare(dropout=0.3)
    one, same, other, still = (
        run(jax.random.key(i), train) for i, train in ((1, True), (1, True), (2, True), (3, False))
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one != still).any()
    np.testing.assert_array_equal(still, bare()(jax.random.key(4), False))


@pytest.mark.slow
def test_bfloat16_and_remat_change_rounding_only():
    key = jax.random.key(0)
    found = bare(compute=Compute(jnp.bfloat16, remat="full"))(key, False)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, bare()(key, False), atol=0.15)


def test_wrong_sizes_are_one_sentence(variables, batch):
    with pytest.raises(ValueError, match="cross_every must be in 1 ... depth=2, got 3"):
        dataclasses.replace(qformer.QFormerConfig.tiny(), cross_every=3)
    with pytest.raises(ValueError, match="image_width must be vision.width=12, got 1408"):
        qformer.RetrievalConfig(VISION, qformer.QFormerConfig())
    with pytest.raises(ValueError, match="at most 9 tokens, got 10"):
        MODEL.apply(variables, batch["images"], np.ones((4, 10), np.int32))
    bare = qformer.QFormer(dataclasses.replace(QFORMER, text=False))
    with pytest.raises(ValueError, match="give encoder_hidden_states"):
        bare.init(jax.random.key(0), jnp.zeros((1, 5, 16)))
    with pytest.raises(ValueError, match="set text=True"):
        bare.init(jax.random.key(0), text_embeds=jnp.zeros((1, 5, 16)))
