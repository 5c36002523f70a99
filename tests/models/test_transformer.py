"""The Transformer against torch and transformers (stored outputs, tests/goldens/make_transformer.py), then what users
rely on."""

import dataclasses
from functools import partial
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformer_names
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import transformer
from mmjax.nn import beam
from mmjax.ops import masks
from mmjax.train import optim

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = transformer.TransformerConfig(
    vocab_size=31, width=12, depth=2, decoder_depth=3, num_heads=3, hidden=20, use_bias=True, dropout=0.0
)
MODELS = {
    "post": transformer.Transformer(CONFIG),
    "pre": transformer.Transformer(dataclasses.replace(CONFIG, norm_first=True)),
}
MODEL = MODELS["post"]
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
apply = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "transformer_torch.npz")


@pytest.fixture(scope="module")
def batch(golden):
    arrays = clip_names.group(golden, "inputs")
    return {name: x if x.dtype == bool else x.astype(np.int32) for name, x in arrays.items()}


@pytest.fixture(scope="module")
def inputs(batch):
    return {name: batch[name] for name in INPUTS}


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": transformer_names.from_torch(clip_names.group(golden, "post/weights"))}


@pytest.fixture(scope="module")
def marian():
    return *weights.load_hf(GOLDENS / "hf_marian"), np.load(GOLDENS / "hf_marian" / "outputs.npz")


# --- the originals' numbers


@pytest.mark.parametrize("order", MODELS)
def test_both_orders_of_norms_equal_torch(golden, batch, inputs, order):
    model, group = MODELS[order], partial(clip_names.group, golden)
    variables = {"params": transformer_names.from_torch(group(f"{order}/weights"))}
    outputs = group(f"{order}/outputs")

    def loss(variables):
        value, aux = transformer.loss(model, variables, batch, jax.random.key(0), 0)
        return value, (aux.weight, model.apply(variables, **inputs))

    (value, (count, out)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    mask = inputs["attention_mask"]
    close("memory", out.encoder_last_hidden_state[mask], outputs["memory"][mask], relative=1e-5)
    close("hidden", out.last_hidden_state, outputs["hidden"], relative=1e-5)
    close("logits", out.logits, outputs["logits"], relative=1e-5)
    close("loss with label smoothing", value, outputs["loss"], relative=1e-5)
    assert count == (batch["labels"] != -100).sum() == 12
    close_trees(gradients["params"], transformer_names.from_torch(group(f"{order}/gradients")), relative=1e-4)


def test_a_folder_of_marian_computes_what_the_original_computed(marian):
    model, variables, stored = marian
    labels = stored["labels"].astype(np.int32)
    ids, mask = stored["input_ids"].astype(np.int32), stored["attention_mask"]
    inputs = transformer.shift_right(labels, model.config.start_id)
    assert (model.config.start_id, model.config.end_id, model.config.pad_id) == (28, 3, 28)
    out = jax.jit(model.apply)(variables, ids, mask, decoder_input_ids=inputs)
    close("memory", out.encoder_last_hidden_state[mask], stored["memory"][mask], relative=1e-5)
    close("logits", out.logits, stored["logits"], relative=1e-5)
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": inputs, "labels": labels}
    loss = jax.jit(lambda v: transformer.loss(model, v, batch, jax.random.key(0), 0)[0])
    close("loss", loss(variables), stored["loss"], relative=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_beams_equal_transformers(marian, alpha):
    model, variables, stored = marian
    search = beam.Search(length=8, beams=3, alpha=alpha, penalty=beam.power)
    found = transformer.translate(
        model, variables, stored["input_ids"].astype(np.int32), stored["attention_mask"], search
    )
    expected = stored[f"tokens_{alpha}"].reshape(4, 3, -1)
    np.testing.assert_array_equal(found.tokens[..., : expected.shape[-1]], expected)
    assert len(set(np.asarray(found.lengths).ravel())) >= 2  # some end early
    close("scores", found.scores, stored[f"scores_{alpha}"].reshape(4, 3), relative=1e-5)


def test_a_folder_of_marian_is_written_bit_by_bit(marian, tmp_path):
    model, variables, _ = marian
    weights.save_hf(tmp_path, model, variables)
    again, same = weights.load_hf(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    theirs, ours = (weights.files.read(folder / "model.safetensors") for folder in (GOLDENS / "hf_marian", tmp_path))
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, ours[name])


def test_copies_of_the_table_and_positions_in_older_files_are_no_weights(marian, tmp_path):
    _, variables, _ = marian
    tensors = {n: np.array(x) for n, x in weights.files.read(GOLDENS / "hf_marian" / "model.safetensors").items()}
    del tensors["final_logits_bias"]
    copies = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tensors |= dict.fromkeys(copies, tensors["model.shared.weight"])
    tensors |= {
        f"model.{side}.embed_positions.weight": np.zeros((40, 12), np.float32) for side in ("encoder", "decoder")
    }
    weights.files.write(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_bytes((GOLDENS / "hf_marian" / "config.json").read_bytes())
    _, loaded = weights.load_hf(tmp_path)
    assert not loaded["params"].pop("logit_bias").any()
    expected = {name: x for name, x in variables["params"].items() if name != "logit_bias"}
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_embedding": False}, "scale_embedding is false"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
        ({"decoder_ffn_dim": 21}, r"encoder_ffn_dim and decoder_ffn_dim must be equal, got \[20, 21\]"),
        ({"activation_function": "mish"}, "activation_function is 'mish', supported are relu"),
        ({"vocab_size": 30, "decoder_vocab_size": 30}, "final_logits_bias is"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, change, message):
    import json

    source = GOLDENS / "hf_marian"
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | change))
    with pytest.raises(ValueError, match=message):
        weights.load_hf(tmp_path)


def test_what_marian_cannot_hold_is_not_written(variables, tmp_path):
    with pytest.raises(ValueError, match="cannot hold positions=.*, head_bias=False, epsilon=1e-06"):
        weights.save_hf(tmp_path, MODEL, variables)


@pytest.mark.parametrize(("make", "count"), [(transformer.base, 63_045_632), (transformer.big, 214_171_648)])
def test_published_sizes_have_the_published_number_of_parameters(make, count):
    ids = jnp.zeros((1, 2), jnp.int32)  # 65 and 213 million in table 3, with a vocabulary of about 37,000
    shapes = jax.eval_shape(lambda: transformer.Transformer(make()).init(jax.random.key(0), ids, decoder_input_ids=ids))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


# --- positions


def test_positions_are_the_papers_and_marians_are_the_same_in_another_order():
    table = transformer.interleaved(50, 12)
    for pos, i in ((0, 0), (1, 0), (7, 3), (49, 5)):
        angle = pos / 10_000 ** (2 * i / 12)
        np.testing.assert_allclose(table[pos, [2 * i, 2 * i + 1]], [np.sin(angle), np.cos(angle)], rtol=1e-12)
    np.testing.assert_array_equal(transformer.halves(50, 12), table[:, [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]])
    with pytest.raises(ValueError, match="width must be even, got 7"):
        transformer.halves(3, 7)


def test_a_later_position_is_a_rotation_of_an_earlier_one():
    """Section 3.5: a linear map leads from each position to the one k later, and it is the same everywhere."""
    table = transformer.interleaved(40, 12)
    moved, *_ = np.linalg.lstsq(table[:-5], table[5:], rcond=None)
    np.testing.assert_allclose(table[:-5] @ moved, table[5:], atol=1e-9)


# --- what users rely on


def test_a_written_token_changes_nothing_before_it_and_everything_after(variables, inputs):
    other = inputs["decoder_input_ids"].copy()
    other[:, 3] = (other[:, 3] + 1) % 31
    a, b = (
        apply(variables, **inputs | {"decoder_input_ids": ids}).logits for ids in (inputs["decoder_input_ids"], other)
    )
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert (np.abs(a[:, 3:] - b[:, 3:]).max(-1) > 1e-4).all()


def test_a_token_that_is_read_changes_everything_written(variables, inputs):
    other = inputs["input_ids"].copy()
    other[:, 1] = (other[:, 1] + 1) % 31
    a, b = (apply(variables, **inputs | {"input_ids": ids}).logits for ids in (inputs["input_ids"], other))
    assert (np.abs(a - b).max(-1) > 1e-5).all()


def test_what_stands_in_the_padding_changes_nothing(variables, inputs):
    other = np.where(inputs["attention_mask"], inputs["input_ids"], 5)
    a, b = (apply(variables, **inputs | {"input_ids": ids}).logits for ids in (inputs["input_ids"], other))
    np.testing.assert_array_equal(a, b)


def test_padding_may_stand_on_either_side(variables, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    left, right = {**inputs}, {**inputs}
    for row, count in enumerate(mask.sum(1)):
        left["input_ids"] = left["input_ids"].copy()
        left["input_ids"][row] = np.concatenate([np.zeros(9 - count, np.int32), ids[row, :count]])
    left["attention_mask"] = mask[:, ::-1]
    np.testing.assert_allclose(apply(variables, **left).logits, apply(variables, **right).logits, rtol=1e-5, atol=1e-5)
    search = beam.Search(length=6, beams=2)
    found = [
        transformer.translate(MODEL, variables, x["input_ids"], x["attention_mask"], search) for x in (left, right)
    ]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)


def test_padding_of_what_is_written_may_stand_on_either_side(variables, inputs):
    ids, mask = inputs["decoder_input_ids"][:, :5], np.arange(7) < 5
    pad = np.full((3, 2), 4, np.int32)
    right = apply(variables, **inputs | {"decoder_input_ids": np.concatenate([ids, pad], 1)},
                  decoder_attention_mask=np.tile(mask, (3, 1)))  # fmt: skip
    left = apply(variables, **inputs | {"decoder_input_ids": np.concatenate([pad, ids], 1)},
                 decoder_attention_mask=np.tile(mask[::-1], (3, 1)))  # fmt: skip
    np.testing.assert_allclose(left.logits[:, 2:], right.logits[:, :5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", MODELS)
def test_the_cache_changes_nothing(golden, inputs, order):
    model = MODELS[order]
    variables = {"params": transformer_names.from_torch(clip_names.group(golden, f"{order}/weights"))}
    expected, ids = jax.jit(model.apply)(variables, **inputs).logits, inputs["decoder_input_ids"]
    start = jax.jit(partial(model.apply, method="start"), static_argnums=3)
    cache, found = start(variables, inputs["input_ids"], inputs["attention_mask"], 7), []
    extend = jax.jit(partial(model.apply, method="extend"))
    for part in (ids[:, :1], ids[:, 1:2], ids[:, 2:5], ids[:, 5:]):
        out, cache = extend(variables, part, cache)
        found.append(out.logits)
    close("cached logits", np.concatenate(found, axis=1), expected, relative=1e-5)


def test_a_donated_cache_is_written_in_place(variables, inputs):
    start = jax.jit(partial(MODEL.apply, method="start"), static_argnums=3)
    cache = start(variables, inputs["input_ids"], inputs["attention_mask"], 8)
    step = jax.jit(lambda v, token, cache: MODEL.apply(v, token, cache, method="extend"), donate_argnums=2)
    memory = step.lower(variables, inputs["decoder_input_ids"][:, :1], cache).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


def test_one_beam_takes_the_likeliest_token_each_time(variables, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    found = transformer.translate(MODEL, variables, ids, mask, beam.Search(length=8, beams=1, alpha=0.0))
    written, done = np.full((3, 9), CONFIG.start_id, np.int32), np.zeros(3, bool)
    for place in range(8):  # what stands behind `place` is not seen
        logits = apply(variables, ids, mask, decoder_input_ids=written[:, :8]).logits[:, place]
        written[:, place + 1] = np.where(done, CONFIG.pad_id, logits.argmax(-1))
        done |= written[:, place + 1] == CONFIG.end_id
    np.testing.assert_array_equal(found.tokens[:, 0], written[:, 1:])


def test_source_target_and_head_share_one_table(variables, inputs):
    sizes = [leaf.shape for leaf in jax.tree.leaves(variables) if 31 in leaf.shape]
    assert sizes == [(31, 12)]
    out, head = apply(variables, **inputs), MODEL.head(variables["params"])
    np.testing.assert_array_equal(head.T, variables["params"]["embed"]["embedding"])
    np.testing.assert_allclose(out.last_hidden_state @ head, out.logits, atol=1e-4)


def test_dropout_acts_in_training_only(variables, inputs):
    model = transformer.Transformer(dataclasses.replace(CONFIG, dropout=0.5))
    draw = jax.jit(lambda key: model.apply(variables, **inputs, train=True, rngs={"dropout": key}).logits)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, **inputs).logits, apply(variables, **inputs).logits)
    a, b, c = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_dropout_also_acts_inside_of_each_stack(variables, side):
    model = transformer.Transformer(dataclasses.replace(CONFIG, dropout=0.5))
    x, full = np.random.default_rng(0).normal(size=(1, 4, 12)).astype(np.float32), masks.Full()
    args = (x, full) if side == "encoder" else (x, full, x, full)
    draw = lambda key: model.apply(  # noqa: E731
        variables, rngs={"dropout": key}, method=lambda model: getattr(model, side)(*args, train=True)[0]
    )
    a, b = (jax.jit(draw)(jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(a - b).max() > 0.1


def test_labels_move_behind_the_start_token():
    labels = np.array([[5, 6, 2, -100], [7, 2, -100, -100]])
    np.testing.assert_array_equal(transformer.shift_right(labels, 1), [[1, 5, 6, 2], [1, 7, 2, 1]])


def test_bfloat16_stays_close(variables, inputs):
    config = dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, dtype=jnp.bfloat16))
    out, whole = jax.jit(transformer.Transformer(config).apply)(variables, **inputs), apply(variables, **inputs)
    assert out.last_hidden_state.dtype == jnp.bfloat16
    assert out.logits.dtype == jnp.float32
    assert np.abs(out.logits - whole.logits).mean() < 0.05 * np.abs(whole.logits).mean()


def test_bad_input_is_one_sentence(variables, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with pytest.raises(ValueError, match="row 1 has nothing to translate"):
        transformer.translate(MODEL, variables, ids, mask & (np.arange(3) != 1)[:, None], beam.Search())
    wrong = ids.copy()
    wrong[1, 2] = 31
    with pytest.raises(ValueError, match=r"input_ids\[1, 2\] is 31, but the model knows the ids 0 to 30"):
        transformer.translate(MODEL, variables, wrong, mask, beam.Search())
    with pytest.raises(ValueError, match=r"must be \[B S\] both"):
        transformer.translate(MODEL, variables, ids, mask[:, :4], beam.Search())


@pytest.mark.train
@pytest.mark.parametrize("norm_first", [False, True])
def test_it_learns_to_write_backwards(norm_first):
    config = transformer.TransformerConfig(
        11, width=32, depth=1, decoder_depth=1, num_heads=4, hidden=64, dropout=0.0, norm_first=norm_first
    )
    model, optimizer = transformer.Transformer(config), optim.Noam(32, warmup=100)

    def batch(seed):
        ids = np.random.default_rng(seed).integers(3, 11, (64, 5)).astype(np.int32)
        labels = np.pad(ids[:, ::-1], ((0, 0), (0, 1)), constant_values=config.end_id)
        inputs = np.asarray(transformer.shift_right(labels, config.start_id))
        return {"input_ids": ids, "attention_mask": ids > 0, "decoder_input_ids": inputs, "labels": labels}

    one = batch(0)
    variables = jax.jit(lambda: model.init(jax.random.key(0), one["input_ids"], decoder_input_ids=one["labels"]))()
    transform = optimizer.build(400, variables)

    @jax.jit
    def update(variables, state, batch):
        gradients = jax.grad(lambda v: transformer.loss(model, v, batch, jax.random.key(0), 0)[0])(variables)
        changes, state = transform.update(gradients, state, variables)
        return optax.apply_updates(variables, changes), state

    state = transform.init(variables)
    for seed in range(400):
        variables, state = update(variables, state, batch(seed))
    new = batch(1_000)
    found = transformer.translate(model, variables, new["input_ids"], new["attention_mask"], beam.Search(6, beams=3))
    assert np.mean((found.tokens[:, 0] == new["labels"]).all(1)) > 0.9
