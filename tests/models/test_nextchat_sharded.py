"""NExT-Chat's loss divides by the places of the global batch: the same on one device and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_steps
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.models import nextchat
from mmjax.parallel.mesh import MeshShape

TINY = nextchat.NextChatConfig.tiny()
MODEL = nextchat.NextChat(dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, depth=1)))


def batch() -> dict:
    """Eight rows with zero, one or two places each, of which one may stand in the question."""
    c, rng = MODEL.config, np.random.default_rng(0)
    place = [c.at_token, c.box_token]
    rows = [[1, *place * (i % 3), *rng.integers(3, 50, 12 - 2 * (i % 3))] for i in range(8)]
    corners = rng.uniform(0, 1, (8, 2, 2, 2))
    return {
        "input_ids": np.array(rows, np.int32),
        "spoken": np.arange(13) >= 1 + 2 * (np.arange(8) % 2)[:, None],
        "boxes": np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32),
    }


def on(mesh: jax.sharding.Mesh):
    step = jax.jit(jax.value_and_grad(lambda p, given: nextchat.loss(MODEL, {"params": p}, given, None, 0)[0]))

    def run(params: dict, given: dict):
        given = {n: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for n, x in given.items()}
        with jax.set_mesh(mesh):
            return jax.device_get(step(params, given))

    return run


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_on_a_mesh():
    draw = lambda x: 0.3 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)  # noqa: E731
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    params, given = jax.tree.map(draw, shapes), batch()
    alone, together = (on(MeshShape(data=n).build(jax.devices()[:n])) for n in (1, 8))
    wanted = alone(params, given)
    sharded_steps.assert_same(together(params, given), wanted)
    # A row eight times is its own mean; the mean of these means is another loss.
    local = [alone(params, {n: np.repeat(x[i : i + 1], 8, 0) for n, x in given.items()})[0] for i in range(8)]
    assert abs(np.mean(local) - wanted[0]) > 1e-2
