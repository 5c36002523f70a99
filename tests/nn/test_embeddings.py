"""The token table: a look-up, with float32 gradients, that never holds the global batch on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.nn.embeddings import Embed, Labels
from mmjax.parallel.mesh import MeshShape

TABLE = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 11, (16, 5))


def test_rows_are_looked_up_and_unknown_ids_do_not_pass():
    out = Embed(11, 8).apply({"params": {"embedding": TABLE}}, IDS)
    np.testing.assert_array_equal(out, TABLE[IDS])
    assert np.isnan(Embed(11, 8).apply({"params": {"embedding": TABLE}}, np.array([[11, -1, -100]]))).all()


def test_gradients_of_a_token_add_up_in_float32():
    """10,000 ones in bfloat16 stop at 256."""

    def total(table):
        return jnp.sum(Embed(11, 8, jnp.bfloat16).apply({"params": {"embedding": table}}, np.zeros((10, 1000), int)))

    np.testing.assert_array_equal(jax.grad(total)(TABLE)[0], np.full(8, 10_000.0))


def test_each_device_looks_up_its_own_rows():
    rng = np.random.default_rng(2)
    table, ids = rng.normal(size=(512, 16)).astype(np.float32), rng.integers(0, 512, (32, 12))
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    placed = (
        jax.device_put(table, NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))),
        jax.device_put(ids, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))),
    )

    def total(table, ids):
        return jnp.sum(Embed(512, 16).apply({"params": {"embedding": table}}, ids) ** 2)

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(total)).lower(*placed).compile()
        gradient = compiled(*placed)
    rows = re.findall(r"\[(\d+),12[,\]]", compiled.as_text())
    assert set(rows) == {"8"}  # 32 rows over data and fsdp; 16 or 32 would be another device's
    expected = np.zeros_like(table)
    np.add.at(expected, ids, 2 * table[ids])
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_labels_of_several_kinds_add_up_and_none_has_a_row():
    model = Labels((3, 2), 4)
    table = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    variables = {"params": {"embedding": table}}
    told = model.apply(variables, jnp.array([[2, 1], [0, -1], [-1, -1]]), jnp.array([False, False, False]))
    np.testing.assert_allclose(told, [table[2] + table[5], table[0] + table[6], table[3] + table[6]], rtol=1e-6)
    dropped = model.apply(variables, jnp.array([[2, 1]]), jnp.array([True]))
    np.testing.assert_allclose(dropped, [table[3] + table[6]], rtol=1e-6)
    assert np.isnan(model.apply(variables, jnp.array([[3, 0]]))).all()
    with pytest.raises(ValueError, match=r"labels must be \[B 2\]"):
        model.apply(variables, jnp.array([1]))
