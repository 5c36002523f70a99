"""The engine on plain trees: rules read both ways, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.weights import engine
from mmjax.weights.engine import CONV, ONE, TRANSPOSE, Rule, Transform


def halves_to_pairs(x):  # [(2 d) i] -> [(d 2) i]: the order of rotary's rows differs between libraries
    return x.reshape(2, -1, x.shape[-1]).swapaxes(0, 1).reshape(x.shape)


def pairs_to_halves(x):
    return x.reshape(-1, 2, x.shape[-1]).swapaxes(0, 1).reshape(x.shape)


ROPE = Transform(read=lambda x: halves_to_pairs(x).T, write=lambda x: pairs_to_halves(x.T))
RULES = [
    Rule(("layers/query/kernel", "layers/key/kernel"), "h.{i}.qk", TRANSPOSE),
    Rule("layers/rotary/kernel", "h.{i}.rope", ROPE),
    Rule("conv/kernel", "conv", CONV),
    Rule("scale", "scale", ONE),
    Rule("table", "table"),
]
TARGET = {
    "layers": {"query": {"kernel": (3, 5, 2)}, "key": {"kernel": (3, 5, 4)}, "rotary": {"kernel": (3, 5, 6)}},
    "conv": {"kernel": (2, 3, 4, 7)},
    "scale": (),
    "table": (6, 2),
}
TARGET = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), TARGET, is_leaf=lambda x: isinstance(x, tuple)
)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"conv": (7, 4, 2, 3), "scale": (1,), "table": (6, 2)}
    shapes |= {f"h.{i}.qk": (6, 5) for i in range(3)} | {f"h.{i}.rope": (6, 5) for i in range(3)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def load(tensors, **options):
    return engine.load(RULES, tensors, TARGET, format="Toy", source="toy.safetensors", **options)


def test_each_number_lands_where_an_index_by_hand_finds_it(tensors):
    tree = load(tensors)
    for layer in range(3):
        fused, rope = tensors[f"h.{layer}.qk"], tensors[f"h.{layer}.rope"]
        for row in range(5):
            for column in range(2):
                assert tree["layers"]["query"]["kernel"][layer, row, column] == fused[column, row]
            for column in range(4):
                assert tree["layers"]["key"]["kernel"][layer, row, column] == fused[2 + column, row]
            for pair in range(3):
                assert tree["layers"]["rotary"]["kernel"][layer, row, 2 * pair] == rope[pair, row]
                assert tree["layers"]["rotary"]["kernel"][layer, row, 2 * pair + 1] == rope[3 + pair, row]
    assert tree["conv"]["kernel"][1, 2, 3, 6] == tensors["conv"][6, 3, 1, 2]
    assert tree["scale"].shape == ()
    assert tree["scale"] == tensors["scale"][0]
    np.testing.assert_array_equal(tree["table"], tensors["table"])


def test_a_tree_of_shapes_is_filled_with_its_shapes_and_float32(tensors):
    tree = load({name: x.astype(np.float16) for name, x in tensors.items()})
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tree) == jax.tree.map(lambda x: (x.shape, x.dtype), TARGET)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_there_and_back_keeps_every_bit(tensors, dtype):
    tensors = {name: x.astype(dtype) for name, x in tensors.items()}
    back = engine.save(RULES, load(tensors, dtype=None), format="Toy")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].flags.c_contiguous
        assert back[name].tobytes() == tensor.tobytes()


def test_a_scalar_is_read_with_and_without_an_axis(tensors):
    tensors["scale"] = tensors["scale"].reshape(())
    assert load(tensors)["scale"] == tensors["scale"]


def test_all_that_is_wrong_stands_in_one_error(tensors):
    tensors["tables"] = tensors.pop("table")
    tensors["conv"] = tensors["conv"].swapaxes(0, 1)
    tensors["scale"] = tensors["scale"].astype(np.int32)
    tensors["h.3.rope"] = tensors["h.2.rope"]
    with pytest.raises(ValueError, match="toy.safetensors does not fit Toy") as error:
        load(tensors)
    message = str(error.value)
    assert "missing table (there is tables);" in message
    assert "unknown h.3.rope, tables;" in message or "unknown tables, h.3.rope;" in message
    assert "conv is [4, 7, 2, 3], expected [7, 4, 2, 3]" in message
    assert "scale holds int32, expected floating point" in message


def test_a_fused_tensor_of_the_wrong_height_is_an_error(tensors):
    tensors["h.1.qk"] = tensors["h.1.qk"][:5]
    with pytest.raises(ValueError, match=r"h\.1\.qk is \[5, 5\], expected \[6, 5\]"):
        load(tensors)


def test_a_long_list_of_names_is_cut(tensors):
    tensors |= {f"extra.{i}": np.zeros(1) for i in range(20)}
    with pytest.raises(ValueError, match=r"extra\.7 and 12 more"):
        load(tensors)


def test_ignored_names_are_no_error_and_only_those(tensors):
    tensors["h.position_ids"] = np.arange(3)
    load(tensors, ignored=[r"position_ids$"])
    with pytest.raises(ValueError, match=r"unknown h\.position_ids"):
        load(tensors, ignored=[r"^position_ids$"])


def test_a_leaf_without_a_rule_and_a_rule_without_a_leaf_are_errors(tensors):
    tree = load(tensors)
    with pytest.raises(ValueError, match="Toy has no place for this model: no tensor for stem"):
        engine.save(RULES, tree | {"stem": np.zeros(2)}, format="Toy")
    with pytest.raises(ValueError, match="the model lacks table"):
        engine.save(RULES, {key: x for key, x in tree.items() if key != "table"}, format="Toy")
