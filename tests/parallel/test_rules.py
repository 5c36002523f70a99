"""Path rules place every large array, and what follows a parameter follows its placement."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mmjax.parallel import mesh as meshes
from mmjax.parallel import rules

MESH = AbstractMesh((2, 4, 2, 1), meshes.AXES, axis_types=(AxisType.Auto,) * 4)


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def specs(tree, table=rules.DEFAULT):
    return jax.tree.map(lambda sharding: sharding.spec, rules.shardings(MESH, table, tree))


def test_the_names_of_a_block_decide_its_axes_and_stacking_does_not_move_them():
    kernels = {name: {"kernel": leaf(12, 64, 64)} for name in ("query", "key", "value", "out", "up", "gate", "down")}
    inward, outward = PartitionSpec(None, "fsdp", "tensor"), PartitionSpec(None, "tensor", "fsdp")
    assert {name: spec["kernel"] for name, spec in specs({"layers": kernels})["layers"].items()} == {
        **dict.fromkeys(("query", "key", "value", "up", "gate"), inward),
        **dict.fromkeys(("out", "down"), outward),
    }
    unstacked = specs({"query": {"kernel": leaf(64, 64)}})
    assert unstacked["query"]["kernel"] == PartitionSpec("fsdp", "tensor")


def test_tables_heads_and_convolutions_have_rules():
    tree = {
        "text": {"embed": {"embedding": leaf(512, 64)}, "pos_embed": leaf(7, 64)},
        "vision": {"patch_embed": {"kernel": leaf(14, 14, 3, 64)}, "class_embed": leaf(64)},
        "text_projection": {"kernel": leaf(64, 32)},
        "projector": {"kernel": leaf(64, 32)},
        "logit_scale": leaf(),
    }
    assert specs(tree) == {
        "text": {"embed": {"embedding": PartitionSpec("tensor", "fsdp")}, "pos_embed": PartitionSpec(None, "fsdp")},
        "vision": {"patch_embed": {"kernel": PartitionSpec(None, None, None, "fsdp")}, "class_embed": PartitionSpec()},
        "text_projection": {"kernel": PartitionSpec("fsdp", "tensor")},
        "projector": {"kernel": PartitionSpec("fsdp", "tensor")},
        "logit_scale": PartitionSpec(),
    }


def test_optimizer_slots_and_averages_lie_where_their_parameter_lies():
    params = {"layers": {"mlp": {"up": {"kernel": leaf(3, 64, 256), "bias": leaf(3, 256)}}}}
    state = {"params": params, "opt_state": jax.eval_shape(optax.adamw(1e-3).init, params), "ema": params}
    placed = specs(state)
    up = placed["params"]["layers"]["mlp"]["up"]
    assert up == {"kernel": PartitionSpec(None, "fsdp", "tensor"), "bias": PartitionSpec()}
    adam = placed["opt_state"][0]
    assert (
        adam.mu["layers"]["mlp"]["up"] == adam.nu["layers"]["mlp"]["up"] == placed["ema"]["layers"]["mlp"]["up"] == up
    )
    assert adam.count == PartitionSpec()


def test_a_large_array_without_a_rule_is_named():
    with pytest.raises(ValueError, match=r"no sharding rule matches codebook/vectors \[1024, 1024\]"):
        specs({"codebook": {"vectors": leaf(1024, 1024)}})
    assert specs({"codebook": {"vectors": leaf(1000, 1000)}})["codebook"]["vectors"] == PartitionSpec()


def test_an_axis_that_does_not_divide_is_an_error_when_large_and_whole_when_small():
    with pytest.raises(ValueError, match=r"splits an axis of 2050 of up/kernel \[2050, 1024\] over fsdp=4"):
        specs({"up": {"kernel": leaf(2050, 1024)}})
    assert specs({"up": {"kernel": leaf(50, 64)}})["up"]["kernel"] == PartitionSpec(None, "tensor")


def test_the_first_rule_that_matches_decides():
    mine = ((r"up/kernel$", PartitionSpec(("fsdp", "tensor"))), *rules.DEFAULT)
    assert specs({"up": {"kernel": leaf(64, 64)}}, mine)["up"]["kernel"] == PartitionSpec(None, ("fsdp", "tensor"))


def test_a_slot_with_fewer_axes_takes_the_last_ones():
    factored = {
        "v_row": {"up": {"kernel": leaf(64)}},
        "empty": {"up": {"kernel": leaf(1)}},
        "count": {"up": {"kernel": leaf()}},
    }
    placed = specs(factored)
    assert placed["v_row"]["up"]["kernel"] == PartitionSpec("tensor")
    assert placed["empty"]["up"]["kernel"] == PartitionSpec(None)
    assert placed["count"]["up"]["kernel"] == PartitionSpec()
