"""Generation against a loop without a cache; filters against plain Python; every row as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import gpt, llama
from mmjax.nn import sampling
from mmjax.nn.sampling import Sampling

RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 64, (3, 6)).astype(np.int32)
COUNTS = np.array([6, 2, 4])
MODELS = {
    "gpt": gpt.GPT(gpt.GPTConfig.tiny()),
    "llama": llama.Llama(llama.LlamaConfig.tiny()),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    model = MODELS[request.param]
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    rng = np.random.default_rng(3)
    return model, jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape).astype(np.float32), shapes)


def padded(side: str, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of COUNTS tokens, with padding that no embedding is for where fill is negative."""
    ids, mask = np.full(IDS.shape, fill, np.int32), np.zeros(IDS.shape, bool)
    for row, count in enumerate(COUNTS):
        at = slice(0, count) if side == "right" else slice(6 - count, 6)
        ids[row, at], mask[row, at] = IDS[row, :count], True
    return ids, mask


def by_hand(model, variables, ids: np.ndarray, count: int) -> list[int]:
    """One row, token by token, each time from the start and without any padding."""
    apply, ids = jax.jit(model.apply), list(ids)
    for _ in range(count):
        row = np.zeros((1, 16), np.int32)
        row[0, : len(ids)] = ids  # what follows a token does not change it
        ids.append(int(apply(variables, row).logits[0, len(ids) - 1].argmax()))
    return ids[-count:]


def test_rows_of_different_length_are_what_each_is_alone(model):
    model, variables = model
    expected = [by_hand(model, variables, IDS[row, :count], 5) for row, count in enumerate(COUNTS)]
    assert len({tuple(row) for row in expected}) == 3
    for side in ("left", "right"):
        ids, mask = padded(side, fill=-7)
        found = sampling.generate(model, variables, ids, mask, max_new_tokens=5)
        np.testing.assert_array_equal(found.tokens, expected, err_msg=side)
        np.testing.assert_array_equal(found.lengths, [5, 5, 5])


def test_so_many_tokens_of_a_range_are_drawn_as_a_loop_without_the_others_draws_them():
    """Codes of a picture: whatever the model would rather say, and whatever stands where in the prompt."""
    model, (first, last) = MODELS["llama"], (20, 29)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape).astype(np.float32), shapes)
    apply, (ids, mask), expected = jax.jit(model.apply), padded("right", fill=-7), []
    for row, count in enumerate(COUNTS):
        text = list(IDS[row, :count])
        for _ in range(5):
            whole = np.array([[*text, *[0] * (16 - len(text))]], np.int32)
            text.append(first + int(apply(variables, whole).logits[0, len(text) - 1, first:last].argmax()))
        expected.append(text[count:])
    found = sampling.generate_among(model, variables, ids, mask, among=(first, last), count=5)
    np.testing.assert_array_equal(found, expected)
    free = sampling.generate(model, variables, ids, mask, max_new_tokens=1).tokens
    assert ((np.asarray(free) < first) | (np.asarray(free) >= last)).any()  # it would rather say something else
    with pytest.raises(ValueError, match=r"ids first < last of a vocabulary of 64, got \(60, 65\)"):
        sampling.generate_among(model, variables, ids, mask, among=(60, 65), count=5)
    with pytest.raises(ValueError, match=r"must not lie among 20 \.\.\. 28"):
        sampling.generate_among(model, variables, ids, mask, among=(20, 29), count=5, sampling=Sampling(stop_ids=(20,)))


def test_random_tokens_are_the_same_on_either_side_and_streamed(model):
    model, variables = model
    options = {"max_new_tokens": 5, "rng": jax.random.key(5)}
    options["sampling"] = Sampling(temperature=1.5, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.2)
    left, right = (sampling.generate(model, variables, *padded(side), **options).tokens for side in ("left", "right"))
    np.testing.assert_array_equal(left, right)
    streamed = np.stack(list(sampling.stream(model, variables, *padded("left"), **options)), axis=1)
    np.testing.assert_array_equal(streamed, left)
    other = sampling.generate(model, variables, *padded("left"), **{**options, "rng": jax.random.key(6)}).tokens
    assert (other != left).any()


def test_a_row_ends_with_its_stop_token_and_the_loop_with_the_last_row(model):
    model, variables = model
    free = np.asarray(sampling.generate(model, variables, IDS, max_new_tokens=6).tokens)
    stop = int(free[0, 2])
    ends = [list(row).index(stop) + 1 if stop in row else 6 for row in free]
    absent = next(i for i in range(64) if i not in free)
    options = {"max_new_tokens": 6, "sampling": Sampling(stop_ids=(absent, stop), pad_id=9)}
    found = sampling.generate(model, variables, IDS, **options)
    np.testing.assert_array_equal(found.lengths, ends)
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(found.tokens[row], [*free[row, :end], *[9] * (6 - end)])
    alone = {**options, "sampling": Sampling(stop_ids=(stop,), pad_id=9)}
    assert len(list(sampling.stream(model, variables, IDS[:1], **alone))) == ends[0]


def test_generation_under_jit(model):
    model, variables = model
    run = jax.jit(lambda v, ids: sampling.generate(model, v, ids, max_new_tokens=4).tokens)
    expected = sampling.generate(model, variables, IDS, max_new_tokens=4).tokens
    np.testing.assert_array_equal(run(variables, IDS), expected)


def test_a_step_writes_its_cache_in_place(model):
    model, variables = model
    state = jax.eval_shape(
        lambda v: sampling.prefill(model, v, IDS, np.ones(IDS.shape, bool), 512, Sampling()), variables
    )
    token = jax.ShapeDtypeStruct((3,), jnp.int32)
    stats = sampling._advance.lower(model, variables, state, token).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
    assert stats.alias_size_in_bytes >= size
    assert stats.temp_size_in_bytes < size


# --- filters


def plain(logits: np.ndarray, seen: set, s: Sampling) -> dict[int, float]:
    """Probabilities of the tokens that are left, one rule after another on a sorted list."""
    logits = {i: x / s.repetition_penalty if i in seen and x > 0 else x * s.repetition_penalty if i in seen else x
              for i, x in enumerate(logits)}  # fmt: skip
    ranked = sorted(((x / s.temperature, i) for i, x in logits.items()), reverse=True)
    ranked = ranked[: s.top_k or None]
    weights = np.exp(np.array([x for x, _ in ranked]) - ranked[0][0])
    chances = weights / weights.sum()
    keep = 1 + int(np.searchsorted(np.cumsum(chances), s.top_p)) if s.top_p < 1 else len(ranked)
    kept = [(p, i) for p, (_, i) in list(zip(chances, ranked, strict=True))[:keep]]
    kept = [(p, i) for p, i in kept if p >= s.min_p * kept[0][0]]
    total = sum(p for p, _ in kept)
    return {i: p / total for p, i in kept}


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_p": 1e-9}, {"repetition_penalty": 1.8},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 0.7, "temperature": 2.0}, {},
    ],
    ids=str,
)  # fmt: skip
def test_filters_leave_what_plain_rules_leave(options):
    s = Sampling(**{"temperature": 0.7, **options})
    logits = np.random.default_rng(1).normal(size=(4, 23)).astype(np.float32) * 2
    seen = np.random.default_rng(2).random((4, 23)) < 0.4
    found = jax.nn.softmax(sampling.filtered(jnp.asarray(logits), jnp.asarray(seen), s))
    for row in range(4):
        expected = plain(logits[row], set(np.flatnonzero(seen[row])), s)
        assert set(np.flatnonzero(found[row])) == set(expected)
        for token, chance in expected.items():
            assert found[row, token] == pytest.approx(chance, rel=1e-4)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    state = sampling.State(None, jnp.tile(logits, (4000, 1)), jnp.zeros((4000, 0), bool), jnp.zeros(4000, bool))
    token, _ = sampling.draw(state, jax.random.key(0), Sampling(temperature=1.0, top_k=3))
    counts = np.bincount(token, minlength=4) / 4000
    np.testing.assert_allclose(counts, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)


# --- bad input


@pytest.mark.parametrize(
    ("ids", "mask", "options", "message"),
    [
        (np.zeros((1, 0), int), None, {}, "the prompt is empty"),
        (IDS, np.arange(6) < np.array([[6], [0], [2]]), {}, "prompt of row 1 is empty"),
        (np.array([[3, 64]]), None, {}, r"input_ids\[0, 1\] is 64, but the model knows the ids 0 to 63"),
        (np.array([[3, -1]]), None, {}, r"input_ids\[0, 1\] is -1"),
        (IDS, None, {"max_new_tokens": 27}, "longest prompt has 6 tokens and 27 more .* context is 32"),
        (IDS, None, {"max_new_tokens": 0}, "at least 1, got 0"),
        (IDS, None, {"sampling": Sampling(temperature=1.0)}, "give rng="),
        (IDS, np.ones((3, 5), bool), {}, r"got \(3, 5\)"),
        (IDS[0], None, {}, r"int \[B T\]"),
        (IDS, None, {"sampling": Sampling(pad_id=64)}, "pad_id is 64"),
    ],
)
def test_bad_input_is_refused(model, ids, mask, options, message):
    model, variables = model
    with pytest.raises(ValueError, match=message):
        sampling.generate(model, variables, ids, mask, **options)
    with pytest.raises(ValueError, match=message):
        sampling.stream(model, variables, ids, mask, **options)  # at once, not at its first token


def test_padding_may_hold_any_number_and_does_not_count(model):
    model, variables = model
    ids, mask = padded("left", fill=1000)
    sampling.generate(model, variables, ids, mask, max_new_tokens=2)


def test_numbers_out_of_range_are_refused():
    for options in ({"top_p": 0.0}, {"temperature": -1.0}, {"min_p": 1.5}, {"repetition_penalty": 0.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match=f"sampling.{next(iter(options))}"):
            Sampling(**options)


def test_a_tokenizer_of_another_model_is_refused():
    model = MODELS["gpt"]
    sampling.check_vocabulary(64, model)
    with pytest.raises(ValueError, match="tokenizer has 65 ids, but the model's vocabulary holds 64"):
        sampling.check_vocabulary(65, model)
