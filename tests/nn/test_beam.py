"""Beam search against plain Python: trying all texts, and the same search written with lists."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from mmjax.nn import beam

END, PAD, SIZE = 0, 9, 4


@struct.dataclass
class Written:
    """A cache that remembers the whole text, so that the chances may depend on all of it."""

    tokens: jax.Array  # [R N]
    count: jax.Array  # []

    def rows(self, order):
        return self.replace(tokens=self.tokens[order])


def model(seed: int, length: int):
    """Chances of each next token after each text of ids below SIZE, by a table; text and chances of another row differ.

    Returns step and cache for beam.search, and the same as a function of (row, text)."""
    table = np.random.default_rng(seed).normal(size=(2, SIZE ** (length + 1), SIZE)).astype(np.float32) * 2

    def place(text):
        return sum((int(t) + 1) * SIZE**i for i, t in enumerate(text)) % (SIZE ** (length + 1))

    def chances(row, text):
        logits = table[row, place(text)].astype(float)
        return logits - math.log(np.exp(logits).sum())

    def step(tokens, cache):
        written = jax.lax.dynamic_update_slice(cache.tokens, tokens[:, None], (0, cache.count))
        text, counts = written[:, 1:], jnp.arange(length) < cache.count  # without the start token
        places = (jnp.where(counts, (text + 1) * SIZE ** jnp.arange(length), 0).sum(1)) % (SIZE ** (length + 1))
        beams = tokens.shape[0] // 2
        logits = jnp.asarray(table)[jnp.repeat(jnp.arange(2), beams), places]
        return logits, Written(written, cache.count + 1)

    def cache(beams):
        return Written(jnp.zeros((2 * beams, length + 1), jnp.int32), jnp.int32(0))

    return step, cache, chances


def run(seed, options):
    step, cache, chances = model(seed, options.length)
    first = jnp.full(2 * options.beams, 3)
    search = jax.jit(lambda cache: beam.search(step, cache, first, options, end_id=END, pad_id=PAD))
    found = search(cache(options.beams))
    texts = [
        [
            (tuple(int(t) for t in found.tokens[row, k, : found.lengths[row, k]]), float(found.scores[row, k]))
            for k in range(options.beams)
            if found.scores[row, k] > -np.inf
        ]
        for row in range(2)
    ]
    rest = np.arange(options.length) >= np.asarray(found.lengths)[..., None]
    assert (np.asarray(found.tokens)[rest] == PAD).all()
    return texts, chances


def all_texts(chances, row, options):
    """Every text that ends or is full, with its score, best first."""
    scored = []
    for length in range(1, options.length + 1):
        for text in itertools.product(range(SIZE), repeat=length):
            if END in text[:-1] or (text[-1] != END and length < options.length) or set(text) & set(options.never):
                continue
            total = sum(chances(row, text[:i])[text[i]] for i in range(length))
            scored.append((text, total / options.penalty(length, options.alpha)))
    return sorted(scored, key=lambda one: -one[1])


def by_lists(chances, row, options):
    """Beam search as it would be told."""
    alive, finished = [((), 0.0)], []
    for length in range(1, options.length + 1):
        tried = [
            (text + (token,), total + chances(row, text)[token])
            for text, total in alive
            for token in range(SIZE)
            if token not in options.never
        ]
        tried = sorted(tried, key=lambda one: -one[1])[: 2 * options.beams]
        ends = [text[-1] == END or length == options.length for text, _ in tried]
        for (text, total), end in list(zip(tried, ends, strict=True))[: options.beams]:
            if end:
                finished.append((text, total / options.penalty(length, options.alpha)))
        finished = sorted(finished, key=lambda one: -one[1])[: options.beams]
        alive = [one for one, end in zip(tried, ends, strict=True) if not end][: options.beams]
    return finished


def assert_same(found, expected):
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)


@pytest.mark.parametrize(("alpha", "penalty"), [(0.0, beam.gnmt), (0.6, beam.gnmt), (1.0, beam.power)])
def test_with_room_for_all_texts_it_finds_the_best_of_all(alpha, penalty):
    options = beam.Search(length=4, beams=30, alpha=alpha, penalty=penalty)  # 27 texts at most are written on
    texts, chances = run(0, options)
    for row in range(2):
        best = all_texts(chances, row, options)
        assert len(best) == 1 + 3 + 9 + 27 * 4
        assert_same(texts[row][:10], best[:10])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_few_beams_find_what_the_search_with_lists_finds(seed, beams):
    options = beam.Search(length=5, beams=beams, alpha=0.6)
    texts, chances = run(seed, options)
    for row in range(2):
        assert_same(texts[row], by_lists(chances, row, options))
    assert any(len(text) < 5 for row in texts for text, _ in row)


def test_one_beam_without_penalty_is_greedy():
    options = beam.Search(length=5, beams=1, alpha=0.0)
    for seed in range(3):
        texts, chances = run(seed, options)
        for row in range(2):
            text = ()
            while END not in text and len(text) < 5:
                text += (int(np.argmax(chances(row, text))),)
            assert texts[row][0][0] == text


def test_more_beams_are_sometimes_better_than_greedy_and_alpha_makes_texts_longer():
    def found(beams, alpha):  # the best text of each row and its score
        texts = [row[0] for seed in range(3) for row in run(seed, beam.Search(5, beams, alpha))[0]]
        return [len(text) for text, _ in texts], np.array([score for _, score in texts])

    gains = found(12, 0.0)[1] - found(1, 0.0)[1]
    assert gains.min() > -1e-5
    assert gains.max() > 0.1
    assert np.mean(found(12, 2.0)[0]) > np.mean(found(12, 0.0)[0])


def test_ids_that_are_never_written_are_not():
    options = beam.Search(length=4, beams=3, never=(1, 2))
    texts, chances = run(1, options)
    for row in range(2):
        assert_same(texts[row], by_lists(chances, row, options))
        assert not {token for text, _ in texts[row] for token in text} & {1, 2}


def test_penalties_are_the_published_ones():
    assert beam.gnmt(7, 0.6) == pytest.approx((12 / 6) ** 0.6)
    assert beam.power(7, 0.6) == pytest.approx(7**0.6)
    assert beam.gnmt(1, 0.6) == beam.power(1, 0.6) == 1


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"length": 0}, {"alpha": -0.5}])
def test_a_search_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 and alpha of at least 0"):
        beam.Search(**wrong)
