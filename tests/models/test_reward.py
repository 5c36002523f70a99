"""Value heads: read at the last token whichever side is padded, start at zero, and keep policy and critic apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import llama
from mmjax.models.reward import ActorCritic, RewardModel, last_token

IDS = np.random.default_rng(0).integers(1, 64, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def scored():
    model = RewardModel(llama.Llama(llama.LlamaConfig.tiny()))
    variables = model.init(jax.random.key(0), IDS)
    np.testing.assert_array_equal(variables["params"]["score"]["kernel"], 0)
    variables["params"]["score"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 1))
    return model, variables


def test_the_score_is_the_value_at_the_last_token():
    values = jnp.arange(12.0).reshape(3, 4)
    mask = jnp.array([[True, True, False, False], [False, True, True, True], [True] * 4])
    np.testing.assert_array_equal(last_token(values, mask), [1, 7, 11])
    np.testing.assert_array_equal(last_token(values, None), [3, 7, 11])


@pytest.mark.slow
def test_padding_on_either_side_changes_no_score(scored):
    model, variables = scored
    plain = model.apply(variables, IDS).scores
    pad, yes = np.full((2, 3), 9, np.int32), np.ones((2, 6), bool)
    no = np.zeros((2, 3), bool)
    left = model.apply(variables, np.concatenate([pad, IDS], 1), np.concatenate([no, yes], 1))
    right = model.apply(variables, np.concatenate([IDS, pad], 1), np.concatenate([yes, no], 1))
    np.testing.assert_allclose(left.scores, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(right.scores, plain, rtol=1e-4, atol=1e-5)
    assert np.abs(plain).min() > 1e-3


def test_values_are_causal(scored):
    model, variables = scored
    other = IDS.copy()
    other[:, 4] = (other[:, 4] + 1) % 64
    values, changed = (model.apply(variables, ids).values for ids in (IDS, other))
    np.testing.assert_allclose(values[:, :4], changed[:, :4], rtol=1e-5, atol=1e-6)
    assert np.abs(values[:, 4:] - changed[:, 4:]).max() > 1e-3


def test_the_head_is_one_kernel_beside_the_language_model(scored):
    model, variables = scored
    inner = model.language_model.init(jax.random.key(0), IDS)["params"]
    assert jax.tree.structure(variables["params"]["language_model"]) == jax.tree.structure(inner)
    hidden = model.language_model.apply({"params": variables["params"]["language_model"]}, IDS).last_hidden_state
    wanted = np.asarray(hidden) @ np.asarray(variables["params"]["score"]["kernel"])
    np.testing.assert_allclose(model.apply(variables, IDS).values, wanted[..., 0], rtol=1e-5, atol=1e-6)


def test_policy_and_critic_share_nothing():
    config = llama.LlamaConfig.tiny()
    model = ActorCritic(llama.Llama(config), RewardModel(llama.Llama(config)))
    params = model.init(jax.random.key(0), IDS)["params"]
    assert params.keys() == {"policy", "critic"}
    own, others = params["policy"]["embed"]["embedding"], params["critic"]["language_model"]["embed"]["embedding"]
    assert np.abs(own - others).max() > 0
