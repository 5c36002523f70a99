"""The probe is at the optimum of its objective, as SciPy finds it too."""

import jax
import lookup_toys as toys
import numpy as np
import pytest
from scipy import optimize, special

from mmjax.evals import probe

RNG = np.random.default_rng(0)


def test_fit_reaches_scipys_optimum():
    labels = RNG.integers(0, 3, 60)
    x = (RNG.normal(size=(3, 4))[labels] + RNG.normal(size=(60, 4))).astype(np.float32)
    l2 = 0.02

    def objective(flat):
        kernel, bias = flat[:12].reshape(4, 3), flat[12:]
        logits = x @ kernel + bias
        return (special.logsumexp(logits, axis=1) - logits[np.arange(60), labels]).mean() + l2 / 2 * (kernel**2).sum()

    best = optimize.minimize(objective, np.zeros(15), method="BFGS")
    found = probe.fit(x, labels, 3, l2, steps=50)
    ours = np.concatenate([np.asarray(found["kernel"], np.float64).ravel(), found["bias"]])
    # The bias is free up to a constant for all classes, so values are compared, and the kernel.
    assert abs(objective(ours) - best.fun) < 1e-6
    np.testing.assert_allclose(found["kernel"], best.x[:12].reshape(4, 3), atol=2e-3)  # float32 against float64


def test_what_a_line_separates_is_learned_on_one_split_and_measured_on_the_other():
    image = RNG.normal(size=(200, 5)) * [100, 1, 1, 1, 1]  # a loud direction without meaning
    image /= np.sqrt((image**2).sum(-1, keepdims=True))
    group = tuple(int(x) for x in image[:, 1] > 0)
    splits = {
        "train": toys.Split(tuple(range(150)), (0,) * 150, group[:150]),
        "test": toys.Split(tuple(range(150, 200)), (0,) * 50, group[150:]),
    }
    data = toys.Data(("a",), splits, ("below", "above"))
    measure = probe.LinearProbe("test")
    metrics = measure(toys.Lookup(), toys.variables(image, np.eye(5)), data, jax.random.key(0)).metrics
    assert metrics["test/probe_subgroup_accuracy"] >= 0.94
    assert metrics["test/probe_subgroup_accuracy_chance"] == 1 / 2
    again = measure(toys.Lookup(), toys.variables(image, np.eye(5)), data, jax.random.key(1)).metrics
    assert again == metrics


def test_labels_that_cannot_be_learned_are_refused():
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    with pytest.raises(ValueError, match="all 4 training rows are of class 1, .* at least two classes"):
        probe.scores(x, np.ones(4, int), x, 2)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got \[0, 2\]"):
        probe.scores(x, np.array([0, 2, 0, 0]), x, 2)
    with pytest.raises(ValueError, match="got 4 rows and 3 labels"):
        probe.scores(x, np.array([0, 1, 0]), x, 2)
