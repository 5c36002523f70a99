"""What Mamba-2 has of its own; all that it shares with Mamba is in test_mamba.py, for both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import weights
from mmjax.models import mamba2


def test_the_norm_after_the_gate_is_over_each_groups_channels():
    x = np.random.default_rng(0).normal(size=(2, 3, 12)).astype(np.float32)
    x[..., 4:8] *= 1000  # one group's size is nothing to the others
    norm = mamba2.GroupedRMSNorm(3, epsilon=1e-5)
    scale = np.arange(1.0, 13)
    found = norm.apply({"params": {"scale": scale}}, x)
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        wanted = x[..., part] / np.sqrt((x[..., part] ** 2).mean(-1, keepdims=True) + 1e-5) * scale[part]
        np.testing.assert_allclose(found[..., part], wanted, rtol=1e-5)


def test_an_own_head_is_a_parameter_and_a_tied_one_is_not():
    for tied in (True, False):
        model = mamba2.Mamba2(dataclasses.replace(mamba2.Mamba2Config.tiny(), tied=tied))
        ids = jnp.arange(8)[None]
        variables = model.init(jax.random.key(0), ids)
        assert ("head" in variables["params"]) == (not tied)
        out = model.apply(variables, ids)
        wanted = out.last_hidden_state @ model.head(variables["params"])
        np.testing.assert_allclose(out.logits, wanted, rtol=1e-5, atol=1e-5)


def test_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="groups must divide heads, got groups=3, heads=4"):
        dataclasses.replace(mamba2.Mamba2Config.tiny(), groups=3)
    odd = mamba2.Mamba2(dataclasses.replace(mamba2.Mamba2Config.tiny(), head_dim=5))
    with pytest.raises(ValueError, match="heads \\* head_dim = 20 to be a multiple of width = 16"):
        weights.save_hf(tmp_path, odd, odd.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    config = {"model_type": "mamba2", "hidden_size": 16, "num_heads": 5, "head_dim": 8}
    weights.files.write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match="got 5 \\* 8 and 2 \\* 16"):
        weights.load_hf(tmp_path)
    weights.files.write_json(tmp_path / "config.json", config | {"num_heads": 4, "time_step_limit": [0.01, 0.2]})
    with pytest.raises(ValueError, match="time_step_limit is \\[0.01, 0.2\\]"):
        weights.load_hf(tmp_path)
