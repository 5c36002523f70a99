"""Retrieval in two steps; equality with LAVIS is in tests/models/test_qformer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.evals import rerank
from mmjax.models import qformer


def test_only_the_best_candidates_are_judged():
    cosines = jnp.array([[0.1, 0.5, 0.3], [0.9, 0.2, 0.8]])
    judged = lambda row, candidates: 10.0 * row + candidates  # noqa: E731
    found = rerank.reranked(judged, cosines, 2)
    np.testing.assert_allclose(found, [[-100, 1.5, 2.3], [10.9, -100, 12.8]], rtol=1e-6)
    np.testing.assert_array_equal(rerank.reranked(judged, cosines, 128) == rerank.UNRANKED, False)


@pytest.mark.slow
def test_scores_of_a_model_are_its_cosines_and_matches():
    model = qformer.Blip2Retrieval(qformer.RetrievalConfig.tiny())
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    ids, mask = rng.integers(0, 60, (2, 4)), np.array([[True] * 4, [True, True, True, False]])
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, ids, mask)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    to_texts, to_images = rerank.scores(model, variables, images, ids, mask, count=2)
    out = jax.jit(model.apply)(variables, images, ids, mask)
    np.testing.assert_allclose(jnp.diag(to_texts), jnp.diag(out.itc) + out.itm[:, 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_texts, to_images.T, rtol=1e-5, atol=1e-6)
