"""GPT-2 and GPT-1 against transformers (stored outputs, tests/goldens/make_gpt.py), then what users rely on."""

from functools import partial
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import lm_names
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import gpt
from mmjax.nn import sampling
from mmjax.objectives import pretrain

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = gpt.GPTConfig(vocab_size=41, length=23, width=24, depth=2, num_heads=3, hidden=40)
MODEL = gpt.GPT(CONFIG)
apply = jax.jit(MODEL.apply)
extend = jax.jit(partial(MODEL.apply, method="extend"))


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "gpt_hf.npz")


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": lm_names.gpt2(clip_names.group(golden, "weights"))}


@pytest.fixture(scope="module")
def batch(golden):
    ids, mask = golden["inputs/input_ids"].astype(np.int32), golden["inputs/attention_mask"].astype(bool)
    return {"input_ids": ids, "attention_mask": mask}


def test_logits_and_hidden_states_equal_transformers(golden, variables, batch):
    out, mask = apply(variables, **batch), batch["attention_mask"]
    for name in ("logits", "last_hidden_state"):
        close(name, getattr(out, name)[mask], golden[f"outputs/{name}"][mask], relative=1e-5)


def test_loss_and_gradients_equal_transformers(golden, variables, batch):
    loss = lambda v: pretrain.loss(MODEL, v, batch, None, 0)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    close("loss", value, golden["outputs/loss"], relative=1e-5)
    close_trees(gradients["params"], lm_names.gpt2(clip_names.group(golden, "gradients")), relative=1e-4)


def test_what_follows_left_padded_prompts_equals_transformers(golden, variables, batch):
    ids, mask = batch["input_ids"][:, ::-1], batch["attention_mask"][:, ::-1]
    greedy = sampling.generate(MODEL, variables, ids, mask, max_new_tokens=6)
    np.testing.assert_array_equal(greedy.tokens, golden["outputs/greedy"])
    # transformers also counts what stands in the padding as seen, so the one row without any is compared.
    penalised = sampling.Sampling(repetition_penalty=1.7)
    penalised = sampling.generate(MODEL, variables, ids[:1], mask[:1], max_new_tokens=6, sampling=penalised)
    np.testing.assert_array_equal(penalised.tokens, golden["outputs/penalised"][:1])
    assert (penalised.tokens != greedy.tokens[:1]).any()


def test_gpt_1_equals_transformers(golden, batch):
    model = gpt.GPT1(gpt.GPTConfig(41, 23, 24, depth=2, num_heads=3, hidden=96))
    variables = {"params": lm_names.gpt1(clip_names.group(golden, "gpt1/weights"))}
    out = jax.jit(model.apply)(variables, batch["input_ids"])
    for name in ("logits", "last_hidden_state"):
        close(f"GPT-1 {name}", getattr(out, name), golden[f"gpt1/outputs/{name}"], relative=1e-5)
    cached, _ = model.apply(variables, batch["input_ids"], model.init_cache(3, 13), method="extend")
    np.testing.assert_allclose(cached.logits, out.logits, rtol=1e-4, atol=1e-4)


def test_a_folder_of_transformers_is_read_and_written(tmp_path):
    model, variables = weights.load_hf(GOLDENS / "hf_gpt2")
    stored = np.load(GOLDENS / "hf_gpt2" / "outputs.npz")
    logits = jax.jit(model.apply)(variables, stored["input_ids"]).logits
    close("logits of the folder", logits, stored["logits"], relative=1e-5)
    weights.save_hf(tmp_path, model, variables)
    again, same = weights.load_hf(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    theirs, ours = (weights.files.read(folder / "model.safetensors") for folder in (GOLDENS / "hf_gpt2", tmp_path))
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, ours[name])


def test_the_hubs_file_has_no_prefix_and_holds_masks(tmp_path):
    tensors = weights.files.read(GOLDENS / "hf_gpt2" / "model.safetensors")
    bare = {name.removeprefix("transformer."): np.array(x) for name, x in tensors.items()}
    bare |= {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 9, 9), np.float32)) for i in range(2)}
    (tmp_path / "config.json").write_bytes((GOLDENS / "hf_gpt2" / "config.json").read_bytes())
    weights.files.write(tmp_path / "model.safetensors", bare)
    _, variables = weights.load_hf(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, weights.load_hf(GOLDENS / "hf_gpt2")[1])


def test_a_token_changes_nothing_before_it(variables, batch):
    ids = batch["input_ids"][:1]
    other = ids.copy()
    other[0, 7] = (other[0, 7] + 1) % 41
    a, b = (apply(variables, one).logits[0] for one in (ids, other))
    np.testing.assert_array_equal(a[:7], b[:7])
    assert (np.abs(a[7:] - b[7:]).max(-1) > 1e-3).all()


def test_the_cache_changes_nothing(variables, batch):
    ids = batch["input_ids"]
    expected, cache, found = apply(variables, ids).logits, MODEL.init_cache(3, 13), []
    for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:9], ids[:, 9:]):
        out, cache = extend(variables, part, cache)
        found.append(out.logits)
    close("cached logits", np.concatenate(found, axis=1), expected, relative=1e-5)


def test_packed_texts_do_not_see_each_other(variables, batch):
    ids = batch["input_ids"][:1]
    segments = np.array([[3] * 4 + [1] * 7 + [2] * 2])
    packed = apply(variables, ids, None, None, segments).logits[0]
    for part in (slice(0, 4), slice(4, 11), slice(11, 13)):
        np.testing.assert_allclose(packed[part], apply(variables, ids[:, part]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (gpt.gpt2, 124_439_808),
        (gpt.gpt2_medium, 354_823_168),
        (gpt.gpt2_large, 774_030_080),
        (gpt.gpt2_xl, 1_557_611_200),
        (gpt.gpt1, 116_534_784),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(make, count):
    model = (gpt.GPT1 if make is gpt.gpt1 else gpt.GPT)(make())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_initial_values_are_the_papers():
    config = gpt.GPTConfig(vocab_size=400, length=60, width=64, depth=3, num_heads=2, hidden=128)
    params = jax.jit(gpt.GPT(config).init)(jax.random.key(0), np.zeros((1, 2), int))["params"]
    attention, mlp, residual = params["layers"]["attention"], params["layers"]["mlp"], 0.02 / 6**0.5
    for leaf, deviation in (
        (params["embed"]["embedding"], 0.02), (params["pos_embed"], 0.01), (attention["key"]["kernel"], 0.02),
        (attention["out"]["kernel"], residual), (mlp["up"]["kernel"], 0.02), (mlp["down"]["kernel"], residual),
    ):  # fmt: skip
        assert np.std(leaf) == pytest.approx(deviation, rel=3 / leaf.size**0.5)


def test_a_row_longer_than_the_positions_is_refused(variables):
    with pytest.raises(ValueError, match="at most 23 tokens a row, got 24"):
        apply(variables, np.zeros((1, 24), int))
