"""BERT against transformers (stored outputs, tests/goldens/make_bert.py), then how words are hidden and what users
rely on."""

import dataclasses
import functools
from pathlib import Path

import bert_names
import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close
from flax import linen as nn

from mmjax.models import bert
from mmjax.nn.mlp import gelu, gelu_tanh
from mmjax.nn.stack import Compute

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = bert.BERTConfig(
    vocab_size=61, length=19, width=24, depth=2, num_heads=3, hidden=40, activation=gelu, dropout=0.0
)
MODEL = bert.BERTForPreTraining(CONFIG)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MASKING = bert.Masking(mask_id=4, vocab_size=61, never=(2, 3))


@pytest.fixture(scope="module")
def golden():
    """variables, batch, outputs and gradients, in our names and layouts."""
    arrays = np.load(GOLDENS / "bert_hf.npz")
    group = functools.partial(clip_names.group, arrays)
    batch = {name: x.astype(np.int32) for name, x in group("inputs").items()}
    batch["attention_mask"] = batch["attention_mask"].astype(bool)
    variables = {"params": bert_names.from_hf(group("weights"))}
    return variables, batch, group("outputs"), bert_names.from_hf(group("gradients"))


def inputs(batch: dict) -> dict:
    return {name: batch[name] for name in INPUTS}


apply = jax.jit(MODEL.apply)
encoder = bert.BERT(CONFIG)
encode = jax.jit(functools.partial(encoder.apply, collect=True))


# --- the original's numbers


def test_words_and_next_sentence_equal_transformers(golden):
    variables, batch, outputs, _ = golden
    out = apply(variables, **inputs(batch))
    close("logits", out.logits, outputs["logits"], relative=1e-5)
    close("nsp", out.nsp, outputs["nsp"], relative=1e-5)
    bare = apply(variables, batch["input_ids"])
    close("logits without a mask", bare.logits, outputs["logits_bare"], relative=1e-5)


def test_every_layer_and_the_pooler_equal_transformers(golden):
    variables, batch, outputs, _ = golden
    out = encode({"params": variables["params"]["bert"]}, **inputs(batch))
    assert out.hidden_states.shape == (2, 3, 17, 24)
    for layer in range(2):
        close(f"layer {layer}", out.hidden_states[layer], outputs["hidden_states"][layer + 1], relative=1e-5)
    close("last", out.last_hidden_state, outputs["last_hidden_state"], relative=1e-5)
    close("pooler", out.pooler_output, outputs["pooler_output"], relative=1e-5)


def test_loss_and_gradients_equal_transformers(golden):
    variables, batch, outputs, gradients = golden

    def loss(variables):
        total, aux = bert.pretraining_loss(MODEL, variables, batch, jax.random.key(0), 0)
        return total, aux.metrics

    (value, metrics), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    close("loss", value, outputs["loss"], relative=1e-5)
    close("loss of words", metrics["mlm"], outputs["mlm"], relative=1e-5)
    clip_names.close_trees(ours["params"], gradients, relative=1e-4)


def test_google_and_transformers_differ_in_gelu(golden):
    variables, batch, outputs, _ = golden
    google = bert.BERTForPreTraining(dataclasses.replace(CONFIG, activation=gelu_tanh))
    logits = jax.jit(google.apply)(variables, **inputs(batch)).logits
    close("logits", logits, outputs["logits_tanh"], relative=1e-5)
    assert np.abs(logits - outputs["logits"]).max() > 1e-4


@pytest.mark.parametrize(
    ("config", "encoder", "masked_lm", "pretraining"),
    [  # computed from the shapes of transformers' classes
        (bert.base(), 109_482_240, 109_514_298, 110_106_428),
        (bert.large(), 335_141_888, 335_174_458, 336_226_108),
        (bert.sized(12, 768, vocab_size=28_996), 108_310_272, 108_340_804, 108_932_934),
        (bert.sized(2, 128), 4_385_920, 4_416_698, 4_433_468),
        (bert.sized(4, 256), 11_170_560, 11_201_594, 11_267_900),
        (bert.sized(4, 512), 28_763_648, 28_795_194, 29_058_876),
        (bert.sized(8, 512), 41_373_184, 41_404_730, 41_668_412),
        (bert.minilm(), 22_713_216, 22_744_506, 22_893_116),
        (bert.minilm(12), 33_360_000, 33_391_290, 33_539_900),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(config, encoder, masked_lm, pretraining):
    found = []
    for make in (bert.BERT, bert.BERTForMaskedLM, bert.BERTForPreTraining):
        variables = jax.eval_shape(make(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
        found.append(sum(leaf.size for leaf in jax.tree.leaves(variables)))
    assert found == [encoder, masked_lm, pretraining]


# --- how words are hidden


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of 5 to 40 tokens: [CLS] (2), words from 5 on, [SEP] (3), padding (0)."""
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(5, 61, (2000, 40)).astype(np.int32), rng.integers(5, 41, 2000)
    mask = np.arange(40) < lengths[:, None]
    ids[:, 0], ids[np.arange(2000), lengths - 1] = 2, 3
    return np.where(mask, ids, 0), mask


@pytest.fixture(scope="module")
def hidden(rows):
    return {name: np.asarray(x) for name, x in masked(jax.random.key(1), *rows).items()}


masked = jax.jit(functools.partial(bert.mask_tokens, masking=MASKING))


def test_a_row_hides_fifteen_percent_of_its_tokens_by_the_originals_rounding(rows, hidden):
    ids, mask = rows
    assert hidden["masked_positions"].shape == hidden["labels"].shape == (2000, 6)
    counted = (hidden["labels"] != bert.IGNORED).sum(1)
    np.testing.assert_array_equal(counted, [max(1, round(0.15 * n)) for n in mask.sum(1)])


def test_labels_are_the_words_that_stood_there_and_never_special(rows, hidden):
    ids, _ = rows
    for row in range(2000):
        places = hidden["masked_positions"][row][hidden["labels"][row] != bert.IGNORED]
        assert len(set(places)) == len(places)
        labels = hidden["labels"][row][hidden["labels"][row] != bert.IGNORED]
        np.testing.assert_array_equal(labels, ids[row, places])
        assert (ids[row, places] >= 5).all()
        others = np.setdiff1d(np.arange(40), places)
        np.testing.assert_array_equal(hidden["input_ids"][row, others], ids[row, others])


def test_eighty_percent_become_mask_ten_random_ten_stay(rows, hidden):
    places, labels = hidden["masked_positions"], hidden["labels"]
    counts = labels != bert.IGNORED
    shown, words = np.take_along_axis(hidden["input_ids"], places, 1)[counts], labels[counts]
    total = len(words)  # about 6,700: one standard deviation of a share of 0.1 is 0.004
    assert np.mean(shown == 4) == pytest.approx(0.8 + 0.1 / 61, abs=0.02)
    assert np.mean(shown == words) == pytest.approx(0.1 + 0.1 / 61, abs=0.015)
    random = shown[(shown != 4) & (shown != words)]
    assert len(random) / total == pytest.approx(0.1 * 59 / 61, abs=0.015)
    assert set(random) >= set(range(61)) - {4}  # all of the vocabulary, special ids too


def test_every_place_is_hidden_equally_often():
    ids, mask = np.full((4000, 12), 9, np.int32), np.ones((4000, 12), bool)
    ids[:, 0], ids[:, -1] = 2, 3
    out = masked(jax.random.key(0), ids, mask)
    counts = np.bincount(np.asarray(out["masked_positions"])[np.asarray(out["labels"]) != -100], minlength=12)
    assert counts[0] == counts[-1] == 0
    np.testing.assert_allclose(counts[1:-1] / 4000, 0.2, atol=0.03)  # 2 of 10 words


def test_a_key_decides_what_is_hidden(rows):
    again, same, other = (masked(jax.random.key(seed), *rows)["input_ids"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(again, same)
    assert (np.asarray(again) != np.asarray(other)).any(1).mean() > 0.9


def test_masking_loss_is_the_loss_of_what_mask_tokens_hides(golden):
    variables, batch, _, _ = golden
    batch = {**inputs(batch), "next_sentence_label": batch["next_sentence_label"]}
    key = jax.random.key(5)
    value, _ = bert.masking_loss(MODEL, variables, batch, key, 0, masking=MASKING, loss=bert.pretraining_loss)
    chosen = bert.mask_tokens(jax.random.split(key)[0], batch["input_ids"], batch["attention_mask"], MASKING)
    labels = np.full(batch["input_ids"].shape, bert.IGNORED)
    np.put_along_axis(labels, np.asarray(chosen["masked_positions"]), np.asarray(chosen["labels"]), axis=1)
    everywhere = {**batch, "input_ids": chosen["input_ids"], "labels": labels}
    expected, _ = bert.pretraining_loss(MODEL, variables, everywhere, key, 0)
    assert value == pytest.approx(float(expected), rel=1e-5)


# --- what users rely on


def test_padding_changes_nothing(golden):
    variables, batch, _, _ = golden
    ids, mask, types = (batch[name][1:2] for name in INPUTS)  # 8 tokens and 9 of padding
    short = apply(variables, ids[:, :8], mask[:, :8], types[:, :8])
    for fill in (0, 9):
        out = apply(variables, np.where(mask, ids, fill), mask, types)
        close("logits", out.logits[:, :8], short.logits, relative=1e-5)
        close("nsp", out.nsp, short.nsp, relative=1e-5)


def test_both_directions_are_read(golden):
    variables, batch, _, _ = golden
    ids, other = batch["input_ids"][:1], batch["input_ids"][:1].copy()
    other[0, 8] = 11 if other[0, 8] != 11 else 12
    a, b = (apply(variables, x).logits[0] for x in (ids, other))
    assert (np.abs(a - b).max(-1) > 1e-4).all()


def test_a_sentence_vector_is_the_mean_over_its_tokens(golden):
    variables, batch, outputs, _ = golden
    vectors = jax.jit(functools.partial(encoder.apply, method="encode_text"))(
        {"params": variables["params"]["bert"]}, batch["input_ids"], batch["attention_mask"]
    )
    states = np.asarray(
        encode({"params": variables["params"]["bert"]}, *(batch[n] for n in INPUTS[:2])).last_hidden_state
    )
    for row, length in enumerate((17, 8, 1)):
        mean = states[row, :length].mean(0)
        np.testing.assert_allclose(vectors[row], mean / np.sqrt((mean**2).sum()), atol=1e-5)


def test_heads_read_cls_or_every_token(golden):
    variables, batch, outputs, _ = golden
    head = {"kernel": np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32), "bias": np.arange(3.0)}
    encoder = variables["params"]["bert"]
    classify, tag = bert.BERTForClassification(CONFIG, ("a", "b", "c")), bert.BERTForTagging(CONFIG, ("a", "b", "c"))
    logits = jax.jit(classify.apply)({"params": {"bert": encoder, "head": head}}, **inputs(batch)).logits
    np.testing.assert_allclose(logits, outputs["pooler_output"] @ head["kernel"] + head["bias"], atol=1e-4)
    encoder = {name: part for name, part in encoder.items() if name != "pooler"}
    logits = jax.jit(tag.apply)({"params": {"bert": encoder, "head": head}}, **inputs(batch)).logits
    np.testing.assert_allclose(logits, outputs["last_hidden_state"] @ head["kernel"] + head["bias"], atol=1e-4)


def test_the_mean_of_a_loss_leaves_out_ignored_labels():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    labels = np.array([[1, -100, 4], [-100, 0, -100]])
    value, count = bert.cross_entropy(logits, labels)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_probability[0, 0, 1] + log_probability[0, 2, 4] + log_probability[1, 1, 0]) / 3
    assert (value, count) == (pytest.approx(expected, rel=1e-6), 3)
    assert bert.cross_entropy(logits, np.full((2, 3), -100))[0] == 0


def test_dropout_is_on_in_training_only(golden):
    variables, batch, outputs, _ = golden
    model = bert.BERT(dataclasses.replace(CONFIG, dropout=0.3))
    params = {"params": variables["params"]["bert"]}
    still = model.apply(params, **inputs(batch))
    close("last", still.last_hidden_state, outputs["last_hidden_state"], relative=1e-5)
    run = jax.jit(lambda rng: model.apply(params, **inputs(batch), train=True, collect=True, rngs={"dropout": rng}))
    a, b, c = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.last_hidden_state, b.last_hidden_state)
    assert np.abs(a.last_hidden_state - c.last_hidden_state).max() > 0.1
    fresh = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, batch["input_ids"], train=True)
    assert jax.tree.structure(fresh) == jax.tree.structure(params)  # dropout moves no path


@pytest.mark.parametrize("silent", [("attention", "out"), ("mlp", "down")])
def test_dropout_is_on_what_attention_and_mlp_add(golden, silent):
    variables, batch, _, _ = golden
    params = jax.tree.map(np.array, variables["params"]["bert"])
    zeroed = (params["norm"], params["layers"][silent[0]][silent[1]])  # embeddings, and one of the two
    jax.tree.map(lambda x: x.fill(0), zeroed)
    model = bert.BERT(dataclasses.replace(CONFIG, depth=2, dropout=0.5))
    run = jax.jit(functools.partial(model.apply, train=True, collect=True))
    ids = batch["input_ids"]
    states = np.asarray(run({"params": params}, ids, rngs={"dropout": jax.random.key(0)}).hidden_states)
    still = np.asarray(model.apply({"params": params}, ids, collect=True).hidden_states)
    assert np.ptp(still, axis=2).max() < 1e-5  # all tokens start from zero, so they stay equal
    assert np.ptp(states, axis=2).max(-1).min() > 0.1  # but for noise of their own, in both layers


def test_dropout_keeps_the_mean():
    class Same(nn.Module):
        def __call__(self, x):
            return x

    out = bert.Dropped(Same, 0.25).apply({}, np.ones((1, 2000), np.float32), rngs={"dropout": jax.random.key(0)})
    assert sorted(np.unique(out)) == pytest.approx([0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.05)


def test_initial_values_are_googles():
    config = dataclasses.replace(CONFIG, width=96, hidden=256, vocab_size=500)
    key = jax.random.key(0, impl="rbg")  # compiles in half the time
    params = jax.jit(bert.BERTForPreTraining(config).init)(key, np.zeros((1, 9), int))["params"]
    kernels = {"query": params["bert"]["layers"]["attention"]["query"], "down": params["bert"]["layers"]["mlp"]["down"],
               "pooler": params["bert"]["pooler"], "transform": params["mlm"]["transform"]}  # fmt: skip
    for name, one in kernels.items():
        # Cut at two deviations of 0.02, a normal keeps 0.88 of its deviation.
        assert np.std(one["kernel"]) == pytest.approx(0.8796 * 0.02, rel=0.05), name
        assert np.abs(one["kernel"]).max() <= 0.04
        assert not one["bias"].any()
    assert np.std(params["bert"]["embed"]["embedding"]) == pytest.approx(0.8796 * 0.02, rel=0.05)


def test_bfloat16_stays_near_float32(golden):
    variables, batch, outputs, _ = golden
    model = bert.BERTForPreTraining(dataclasses.replace(CONFIG, compute=Compute(dtype=jnp.bfloat16)))
    out = jax.jit(model.apply)(variables, **inputs(batch))
    assert out.last_hidden_state.dtype == jnp.bfloat16
    # 8 bits of mantissa through 2 layers, on states of unit variance
    np.testing.assert_allclose(out.last_hidden_state.astype(jnp.float32), outputs["last_hidden_state"], atol=0.2)


def test_rows_that_are_too_long_are_refused_with_both_numbers(golden):
    variables, _, _, _ = golden
    with pytest.raises(ValueError, match="at most 19 tokens a row, got 20"):
        MODEL.apply(variables, np.zeros((1, 20), int))
