"""Three decoders in one loss: each learns as if it were alone."""

import jax
import numpy as np
import pytest

from mmjax.train import overrides

FILE = "experiments/llama_lengths.py"
KINDS = ("learned", "sinusoidal", "rotary")
IDS = np.random.default_rng(0).integers(0, 40, (3, 8)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2]], np.int32)
BATCH = {"input_ids": IDS, "segments": SEGMENTS, "attention_mask": SEGMENTS > 0}
FOLLOWED = [[0, 1, 3, 5, 6], [0, 1, 2, 3], [0, 2, 3, 4, 5, 6]]  # places whose next token is of the same document


@pytest.fixture(scope="module")
def task():
    return overrides.load_experiment(FILE, "tiny", ["task.model.config.vocab_size=40"]).task


@pytest.fixture(scope="module")
def variables(task):
    shapes = jax.eval_shape(task.model.init, jax.random.key(0), IDS)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def results(task, variables):
    """The loss, what it says, its gradients, and those of what it says of each kind."""

    def run(variables, batch):
        loss = lambda v: task.loss(task.model, v, batch, None, 0)[0]  # noqa: E731
        said = lambda v: dict(task.loss(task.model, v, batch, None, 0)[1].metrics)  # noqa: E731
        weight = task.loss(task.model, variables, batch, None, 0)[1].weight
        return *jax.value_and_grad(loss)(variables), said(variables), jax.jacrev(said)(variables), weight

    return jax.device_get(jax.jit(run)(variables, BATCH))


@pytest.mark.slow
def test_it_is_the_sum_of_each_decoders_mean_over_all_tokens(task, variables, results):
    value, _, said, _, weight = results
    assert set(said) == set(KINDS)

    @jax.jit
    def read(variables):
        return {kind: task.model.apply(variables, kind, IDS, SEGMENTS, method="read").logits for kind in KINDS}

    expected = jax.device_get(read(variables))
    for kind in KINDS:
        nll = []
        for row, places in enumerate(FOLLOWED):
            logits = expected[kind][row].astype(np.float64)
            nll += [np.log(np.exp(logits[t]).sum()) - logits[t, IDS[row, t + 1]] for t in places]
        np.testing.assert_allclose(said[kind], np.mean(nll), rtol=1e-5)
    np.testing.assert_allclose(value, sum(said.values()), rtol=1e-6)
    assert weight == len(nll) == 15
    assert len({round(float(one), 4) for one in said.values()}) == 3


@pytest.mark.slow
def test_no_decoder_learns_from_anothers_mistakes(results):
    _, gradients, _, of_each, _ = results
    parts = {"learned": ("learned", "pos_embed"), "sinusoidal": ("sinusoidal",), "rotary": ("rotary",)}
    assert sorted(sum(parts.values(), ())) == sorted(gradients["params"])
    for kind, own in parts.items():
        for name, total in gradients["params"].items():
            alone = of_each[kind]["params"][name]
            if name in own:
                jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), alone, total)
                assert max(np.abs(x).max() for x in jax.tree.leaves(alone)) > 1e-3
            else:
                assert all((x == 0).all() for x in jax.tree.leaves(alone)), (kind, name)
