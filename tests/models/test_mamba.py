"""Mamba and Mamba-2 against transformers (stored outputs, tests/goldens/make_mamba.py), then what users rely on."""

import dataclasses
from functools import partial
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import mamba_names
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import mamba, mamba2
from mmjax.nn import sampling
from mmjax.nn.stack import Compute
from mmjax.objectives import pretrain

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = {
    "mamba": mamba.Mamba(mamba.MambaConfig(41, 12, 2, expand=3, state=5, taps=3, rank=7, epsilon=1e-3)),
    "mamba2": mamba2.Mamba2(
        mamba2.Mamba2Config(41, 12, 2, heads=6, head_dim=6, groups=2, state=10, epsilon=1e-3, tied=False)
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model: mamba.Mamba
    golden: dict
    variables: dict
    batch: dict

    def apply(self, *args):
        return _apply(self.model, self.variables, *args)

    def tree(self, group: str) -> dict:
        return getattr(mamba_names, self.name)(clip_names.group(self.golden, group))


_apply = jax.jit(lambda model, *args: model.apply(*args), static_argnums=0)
_extend = jax.jit(lambda model, *args: model.apply(*args, method="extend"), static_argnums=0)


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    golden = clip_names.group(np.load(GOLDENS / "mamba_hf.npz"), request.param)
    ids, mask = golden["inputs/input_ids"].astype(np.int32), golden["inputs/attention_mask"].astype(bool)
    made = Case(request.param, MODELS[request.param], golden, {}, {"input_ids": ids, "attention_mask": mask})
    return dataclasses.replace(made, variables={"params": made.tree("weights")})


def test_logits_and_hidden_states_equal_transformers(case):
    out, mask = case.apply(*case.batch.values()), case.batch["attention_mask"]
    for name in ("logits", "last_hidden_state"):
        close(name, getattr(out, name)[mask], case.golden[f"outputs/{name}"][mask], relative=1e-5)


def test_loss_and_gradients_equal_transformers(case):
    loss = lambda v: pretrain.loss(case.model, v, case.batch, None, 0)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(case.variables)
    close("loss", value, case.golden["outputs/loss"], relative=1e-5)
    close_trees(gradients["params"], case.tree("gradients"), relative=1e-4)


def test_what_follows_left_padded_prompts_equals_transformers(case):
    ids, mask = case.batch["input_ids"][:, ::-1], case.batch["attention_mask"][:, ::-1]
    ends = sampling.Sampling(stop_ids=(40,))
    greedy = sampling.generate(case.model, case.variables, ids, mask, max_new_tokens=6, sampling=ends)
    np.testing.assert_array_equal(greedy.tokens, case.golden["outputs/greedy"])


def test_token_by_token_is_the_whole_text_at_once(case):
    ids = case.batch["input_ids"]
    expected, cache, found = case.apply(ids).logits, case.model.init_cache(3, 14), []
    for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:9], ids[:, 9:]):
        out, cache = _extend(case.model, case.variables, part, cache)
        found.append(out.logits)
    close("cached logits", np.concatenate(found, axis=1), expected, relative=1e-5)


def test_padding_on_either_side_and_in_the_middle_of_a_conversation_changes_nothing(case):
    ids = case.batch["input_ids"]
    expected = case.apply(ids).logits[:2, :10]
    # Both rows read the same ten tokens in two turns; row 0 is padded on the left, then on the right, row 1 vice versa.
    turns = [[[9, 9, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 9, 9]], [[5, 6, 7, 8, 9, 10], [10, 5, 6, 7, 8, 9]]]
    counts = [[[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]]
    cache, found = case.model.init_cache(2, 13), []
    for turn, count in zip(turns, counts, strict=True):
        tokens, mask = np.take_along_axis(ids[:2], np.array(turn), axis=1), np.array(count, bool)
        out, cache = _extend(case.model, case.variables, tokens, cache, mask)
        found.append(out.logits[mask].reshape(2, 5, -1))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-5, atol=1e-4)


def test_a_token_changes_nothing_before_it_and_everything_after_it(case):
    ids = case.batch["input_ids"][:1]
    other = ids.copy()
    other[0, 7] = (other[0, 7] + 1) % 41
    a, b = (case.apply(one).logits[0] for one in (ids, other))
    np.testing.assert_array_equal(a[:7], b[:7])
    assert (np.abs(a[7:] - b[7:]).max(-1) > 1e-4).all()


def test_packed_texts_do_not_see_each_other(case):
    ids, parts = case.batch["input_ids"][:1], (slice(0, 4), slice(4, 11), slice(11, 13))
    packed = case.apply(ids, None, None, np.array([[3] * 4 + [1] * 7 + [2] * 2])).logits[0]
    for part in parts:
        np.testing.assert_allclose(packed[part], case.apply(ids[:, part]).logits[0], rtol=1e-4, atol=1e-4)
    assert np.abs(case.apply(ids).logits[0, 4:] - packed[4:]).max() > 1e-2


def test_decoding_takes_the_same_memory_after_any_text_and_writes_it_in_place(case):
    cache = case.model.init_cache(2, 10)
    jax.tree.map(np.testing.assert_array_equal, cache, case.model.init_cache(2, 10_000))
    step = jax.jit(partial(case.model.apply, method="extend"), donate_argnums=2)
    compiled = step.lower(case.variables, jnp.zeros((2, 1), jnp.int32), cache).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


def test_a_folder_of_transformers_is_read_and_written(case, tmp_path):
    source = GOLDENS / f"hf_{case.name}"
    model, variables = weights.load_hf(source)
    assert type(model) is type(case.model)
    stored = np.load(source / "outputs.npz")
    close("logits of the folder", _apply(model, variables, stored["input_ids"]).logits, stored["logits"], relative=1e-5)
    weights.save_hf(tmp_path, model, variables)
    again, same = weights.load_hf(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    theirs, ours = (weights.files.read(folder / "model.safetensors") for folder in (source, tmp_path))
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, ours[name])


@pytest.mark.parametrize("names", ["authors", "bare"])
def test_older_names_are_read(case, tmp_path, names):
    source = GOLDENS / f"hf_{case.name}"
    tensors = dict(weights.files.read(source / "model.safetensors"))
    table = tensors.pop("backbone.embeddings.weight")
    if names == "authors":  # state-spaces/mamba-130m: another name, and the head written out
        tensors |= {"backbone.embedding.weight": table, "lm_head.weight": table}
    else:
        tensors |= {"backbone.embeddings.weight": table}
        tensors = {name.removeprefix("backbone."): x for name, x in tensors.items()}
    weights.files.write(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    (model, variables), (same, expected) = weights.load_hf(tmp_path), weights.load_hf(source)
    assert model == same
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_authors_config_is_read(case, tmp_path):
    model, _ = weights.load_hf(GOLDENS / f"hf_{case.name}")
    c = dataclasses.replace(model.config, vocab_size=32)
    if case.name == "mamba":
        inner = {"d_state": c.state, "d_conv": c.taps, "dt_rank": c.rank, "expand": 3}
    else:
        inner = {"layer": "Mamba2", "d_state": c.state, "headdim": c.head_dim, "ngroups": c.groups, "expand": 3}
    small = type(model)(dataclasses.replace(c, epsilon=1e-5))
    variables = small.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    weights.save_hf(tmp_path, small, variables)
    config = {"d_model": c.width, "n_layer": c.depth, "vocab_size": 19, "ssm_cfg": inner, "rms_norm": True}
    weights.files.write_json(tmp_path / "config.json", config | {"pad_vocab_size_multiple": 32})
    again, same = weights.load_hf(tmp_path)
    assert again == small
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_what_no_published_model_has_is_refused(case, tmp_path):
    source = GOLDENS / f"hf_{case.name}"
    config = weights.files.read_json(source / "config.json")
    for field, value in (("use_bias", True), ("hidden_act", "gelu")):
        weights.files.write_json(tmp_path / "config.json", config | {field: value})
        with pytest.raises(ValueError, match=f"config.json: {field} is {value!r}, supported is"):
            weights.load_hf(tmp_path)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (mamba.mamba_130m, 129_135_360),
        (mamba.mamba_370m, 371_516_416),
        (mamba.mamba_790m, 793_204_224),
        (mamba.mamba_1_4b, 1_372_178_432),
        (mamba.mamba_2_8b, 2_768_345_600),
        (mamba2.mamba2_130m, 128_989_632),
        (mamba2.mamba2_370m, 368_346_624),
        (mamba2.mamba2_780m, 780_161_280),
        (mamba2.mamba2_1_3b, 1_343_757_312),
        (mamba2.mamba2_2_7b, 2_702_599_680),
        (mamba2.codestral_7b, 7_285_403_648),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(make, count):
    config = make()
    model = mamba.Mamba(config) if isinstance(config, mamba.MambaConfig) else mamba2.Mamba2(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_fresh_weights_are_the_authors(case):
    mixer = case.model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]["layers"]["mixer"]
    steps = jax.nn.softplus(mixer["delta"]["bias"] if case.name == "mamba" else mixer["delta_bias"])
    assert 1e-3 * 0.999 < steps.min() < steps.max() < 0.1 * 1.001
    A = jnp.exp(mixer["A_log"])
    if case.name == "mamba":
        np.testing.assert_allclose(A[0, :, 3], [1, 2, 3, 4, 5], rtol=1e-6)
    else:
        assert 1 <= A.min() < A.max() <= 16
    np.testing.assert_array_equal(mixer["D"], jnp.ones_like(mixer["D"]))
    assert np.abs(mixer["down"]["kernel"]).max() <= (36 * 2) ** -0.5  # 1 / sqrt(E L)
    assert np.abs(mixer["up"]["kernel"]).max() > 0.9 * 12**-0.5


def test_bfloat16_stays_near_float32(case):
    c = case.model.config
    model = type(case.model)(dataclasses.replace(c, compute=Compute(dtype=jnp.bfloat16, remat="full")))
    out = _apply(model, case.variables, case.batch["input_ids"])
    assert (out.last_hidden_state.dtype, out.logits.dtype) == (jnp.bfloat16, jnp.float32)
    cache = model.init_cache(1, 4)
    assert (cache.conv.dtype, cache.state.dtype) == (jnp.bfloat16, jnp.float32)
    expected = case.apply(case.batch["input_ids"]).logits
    assert np.abs(out.logits - expected).max() < 0.05 * np.abs(expected).max()  # 8 bits of mantissa through 2 layers
