"""LLaMA and Mistral against transformers (stored outputs, tests/goldens/make_llama.py), then what users rely on."""

import dataclasses
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
from mmjax.models import llama
from mmjax.nn import sampling
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain
from mmjax.ops import rope

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = llama.LlamaConfig(41, 64, 24, 2, num_heads=6, num_kv_heads=2, head_dim=10, hidden=36, theta=50.0, epsilon=1e-5)
MODEL = llama.Llama(CONFIG)
VARIANTS = {
    "linear": {"scaling": rope.Linear(3.0)},
    "llama3": {"scaling": rope.Llama3(4.0, 1.0, 3.0, 20)},
    "window": {"window": 4},
}
apply = jax.jit(MODEL.apply)


def variant(**fields) -> llama.Llama:
    return llama.Llama(dataclasses.replace(CONFIG, **fields))


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "llama_hf.npz")


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": lm_names.llama(clip_names.group(golden, "weights"))}


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
    close_trees(gradients["params"], lm_names.llama(clip_names.group(golden, "gradients")), relative=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_scaled_positions_and_windows_equal_transformers(golden, variables, batch, name):
    logits = jax.jit(variant(**VARIANTS[name]).apply)(variables, batch["input_ids"]).logits
    close(f"logits {name}", logits, golden[f"outputs/logits_{name}"], relative=1e-5)
    assert np.abs(logits - apply(variables, batch["input_ids"]).logits).max() > 0.1


def test_what_follows_left_padded_prompts_equals_transformers(golden, variables, batch):
    ids, mask = batch["input_ids"][:, ::-1], batch["attention_mask"][:, ::-1]
    greedy = sampling.generate(MODEL, variables, ids, mask, max_new_tokens=6)
    np.testing.assert_array_equal(greedy.tokens, golden["outputs/greedy"])
    window = variant(**VARIANTS["window"])
    windowed = sampling.generate(window, variables, batch["input_ids"], max_new_tokens=6)
    np.testing.assert_array_equal(windowed.tokens, golden["outputs/greedy_window"])


@pytest.mark.parametrize("window", [None, 4])
def test_the_cache_changes_nothing(variables, batch, window):
    model, ids = variant(window=window), batch["input_ids"]
    extend = jax.jit(partial(model.apply, method="extend"))
    expected, cache, found = jax.jit(model.apply)(variables, ids).logits, model.init_cache(3, 14), []
    for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:9], ids[:, 9:]):
        out, cache = extend(variables, part, cache)
        found.append(out.logits)
    close("cached logits", np.concatenate(found, axis=1), expected, relative=1e-5)


def test_a_token_changes_nothing_before_it(variables, batch):
    ids = batch["input_ids"][:1]
    other = ids.copy()
    other[0, 7] = (other[0, 7] + 1) % 41
    a, b = (apply(variables, one).logits[0] for one in (ids, other))
    np.testing.assert_array_equal(a[:7], b[:7])
    assert (np.abs(a[7:] - b[7:]).max(-1) > 1e-3).all()


def test_packed_texts_do_not_see_each_other(variables, batch):
    ids = batch["input_ids"][:1]
    segments = np.array([[3] * 4 + [1] * 7 + [2] * 2])
    packed = apply(variables, ids, None, None, segments).logits[0]
    for part in (slice(0, 4), slice(4, 11), slice(11, 13)):
        np.testing.assert_allclose(packed[part], apply(variables, ids[:, part]).logits[0], rtol=1e-4, atol=1e-4)


def test_a_folder_of_transformers_is_read_and_written(tmp_path):
    model, variables = weights.load_hf(GOLDENS / "hf_llama")
    stored = np.load(GOLDENS / "hf_llama" / "outputs.npz")
    logits = jax.jit(model.apply)(variables, stored["input_ids"]).logits
    close("logits of the folder", logits, stored["logits"], relative=1e-5)
    weights.save_hf(tmp_path, model, variables)
    again, same = weights.load_hf(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    theirs, ours = (weights.files.read(folder / "model.safetensors") for folder in (GOLDENS / "hf_llama", tmp_path))
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, ours[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_scalings_and_windows_survive_a_folder(tmp_path, variables, name):
    weights.save_hf(tmp_path, variant(**VARIANTS[name]), variables)
    assert weights.load_hf(tmp_path)[0] == variant(**VARIANTS[name])


def test_files_of_older_transformers_keep_theta_and_scaling_apart(tmp_path, variables):
    model = variant(**VARIANTS["llama3"])
    weights.save_hf(tmp_path, model, variables)
    config = weights.files.read_json(tmp_path / "config.json")
    rotary = config.pop("rope_parameters")
    config |= {"rope_theta": rotary.pop("rope_theta"), "rope_scaling": rotary}
    weights.files.write_json(tmp_path / "config.json", config)
    assert weights.load_hf(tmp_path)[0] == model
    config["rope_scaling"] = {**rotary, "rope_type": "yarn"}
    weights.files.write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match="rope_type is 'yarn', supported are default, linear, llama3"):
        weights.load_hf(tmp_path)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (llama.llama_7b, 6_738_415_616),
        (llama.llama_13b, 13_015_864_320),
        (llama.llama2_7b, 6_738_415_616),
        (llama.llama2_70b, 68_976_648_192),
        (llama.llama3_8b, 8_030_261_248),
        (llama.tinyllama_1b, 1_100_048_384),
        (llama.smollm2_135m, 134_515_008),
        (llama.smollm2_360m, 361_821_120),
        (llama.smollm2_1_7b, 1_711_376_384),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(make, count):
    shapes = jax.eval_shape(llama.Llama(make()).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_bfloat16_stays_near_float32(golden, variables, batch):
    model = variant(compute=Compute(dtype=jnp.bfloat16))
    out = jax.jit(model.apply)(variables, batch["input_ids"])
    assert (out.last_hidden_state.dtype, out.logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert model.init_cache(1, 4).key.dtype == jnp.bfloat16
    expected = apply(variables, batch["input_ids"]).logits
    assert np.abs(out.logits - expected).max() < 0.05 * np.abs(expected).max()  # 8 bits of mantissa through 2 layers
