"""Points: brute force and scipy-like accounts in NumPy against each form, gradients too, and on a mesh.

The TPU kernel runs in interpret mode.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import points as module

PALLAS = functools.partial(module.pallas, interpret=True)


def farthest_by_hand(points: np.ndarray, count: int, start: int) -> list[int]:
    """One after another: the point whose nearest taken one is farthest away, the first of equals."""
    taken = [start]
    while len(taken) < count:
        nearest = [min(((p - points[i]) ** 2).sum() for i in taken) for p in points]
        taken.append(int(np.argmax(nearest)))
    return taken


def nearest_by_hand(points: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    distances = [(((p - query) ** 2).sum(), i) for i, p in enumerate(points)]
    return [i for _, i in sorted(distances)[:k]]


def draw(regions=3, count=50, width=6, seed=0):
    """points, values, start."""
    rng = np.random.default_rng(seed)
    points = rng.random((regions, count, 2)).astype(np.float32)
    return points, rng.normal(size=(regions, count, width)).astype(np.float32), rng.integers(0, count, regions)


def test_anchors_and_neighbours_are_those_of_brute_force():
    points, values, start = draw(40, 14, 3)
    found = jax.jit(functools.partial(module.xla, count=12, k=6))(points, values, start)
    for r in range(40):
        anchors = farthest_by_hand(points[r], 12, start[r])
        assert found.anchors[r].tolist() == anchors
        wanted = [nearest_by_hand(points[r], points[r, i], 6) for i in anchors]
        assert found.neighbours[r].tolist() == wanted
        np.testing.assert_array_equal(found.values[r], values[r][np.array(wanted).T])


def test_a_row_of_five_points_by_hand():
    points = np.array([[[0.1, 0], [0.2, 0], [0.5, 0], [0.85, 0], [1.0, 0]]], np.float32)
    # From 0.2 the farthest is 1.0; then 0.5 is 0.3 from the nearest of the two, 0.85 is 0.15, 0.1 is 0.1.
    assert module.farthest_points(points, 5, jnp.array([1]))[0].tolist() == [1, 4, 2, 3, 0]
    assert module.nearest_points(points, points[:, 2:3], 3)[0].tolist() == [[2, 1, 3]]


def test_when_all_different_points_are_taken_the_first_follows():
    points = jnp.asarray(np.array([[[0.25, 0.5], [0.75, 0.5], [0.25, 0.5], [0.75, 0.5]]], np.float32))
    for run in (module.xla, PALLAS):
        found = jax.jit(functools.partial(run, count=4, k=3))(points, jnp.ones((1, 4, 1)), jnp.array([3]))
        assert found.anchors[0].tolist() == [3, 0, 0, 0]
        assert found.neighbours[0, :2].tolist() == [[1, 3, 0], [0, 2, 1]]


def both(run, points, values, start, count, k):
    """What it finds, and what a random cotangent pulls back."""
    cotangent = np.random.default_rng(9).normal(size=(len(points), k, count, values.shape[-1])).astype(np.float32)

    @jax.jit
    def inner(values):
        found, pull = jax.vjp(lambda v: run(jnp.asarray(points), v, jnp.asarray(start), count=count, k=k), values)
        zeros = [np.zeros(x.shape, jax.dtypes.float0) for x in found[:2]]
        return *found, *pull(module.Neighbourhoods(*zeros, cotangent))

    return inner(values)


def test_the_kernel_and_its_gradient_equal_the_plain_form():
    given = draw(2, 130, 140)
    found, wanted = both(PALLAS, *given, 9, 7), both(module.xla, *given, 9, 7)
    for a, b in zip(found[:3], wanted[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(found[3], wanted[3], rtol=1e-5, atol=1e-5 * np.abs(wanted[3]).max())


def test_the_kernel_works_through_several_tiles_and_keeps_bfloat16(monkeypatch):
    from mmjax.ops.kernels import farthest_points as kernel

    monkeypatch.setattr(kernel, "TILES", (128,))
    points, values, start = draw(2, 40, 300)
    values = jnp.asarray(values, jnp.bfloat16)
    found, wanted = (
        jax.jit(functools.partial(run, count=8, k=5))(points, values, start) for run in (PALLAS, module.xla)
    )
    assert found.values.dtype == jnp.bfloat16
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_regions_split_over_a_mesh_change_nothing():
    points, values, start = draw(8, 40, 6)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in (points, values, start)]

    def loss(values, points, start):
        return jnp.sum(jnp.sin(PALLAS(points, values, start, count=8, k=5).values))

    wanted = jax.jit(jax.value_and_grad(loss))(values, points, start)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(placed[1], placed[0], placed[2])
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_what_the_kernel_cannot_do_is_an_error_only_where_it_is_forced():
    points, values, start = (jnp.asarray(x) for x in draw(1, 200, 4))
    with pytest.raises(ValueError, match="pallas cannot make these neighbourhoods: k=128"):
        module.neighbourhoods(points, values, 8, 128, start, implementation="pallas")
    assert module.neighbourhoods(points, values, 8, 128, start).neighbours.shape == (1, 8, 128)
    with pytest.raises(ValueError, match="'xla' or 'pallas', got 'cuda'"):
        module.neighbourhoods(points, values, 8, 4, start, implementation="cuda")
    with pytest.raises(ValueError, match="k from 1 to N=200, got count=8, k=201"):
        module.neighbourhoods(points, values, 8, 201, start)
    with pytest.raises(ValueError, match=r"start must be \[R\] = \(1,\), got \(2,\)"):
        module.neighbourhoods(points, values, 8, 4, jnp.zeros(2, int))


# --- what a map holds


def sampled_by_hand(grid: np.ndarray, x: float, y: float) -> np.ndarray:
    height, width, _ = grid.shape
    column, row, out = x * (width - 1), y * (height - 1), 0.0
    for i in range(height):
        for j in range(width):
            out = out + max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * grid[i, j].astype(np.float64)
    return out


@pytest.mark.parametrize("form", ["gather", "product", None])
def test_a_map_is_read_between_its_cells_with_zeros_beyond(form):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    points = np.concatenate([rng.uniform(-0.6, 1.6, (2, 9, 2)), np.tile([[[0, 0], [1, 1], [-1, -1]]], (2, 1, 1))], 1)
    found = jax.jit(functools.partial(module.sample, implementation=form))(maps, points.astype(np.float32))
    wanted = [[sampled_by_hand(maps[b], *p) for p in points[b]] for b in range(2)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_both_forms_have_one_gradient():
    rng = np.random.default_rng(1)
    maps, points = rng.normal(size=(2, 4, 3, 5)).astype(np.float32), rng.random((2, 7, 2)).astype(np.float32)
    gather, product = (
        jax.jit(jax.grad(lambda m, form=form: jnp.sum(jnp.sin(module.sample(m, points, implementation=form)))))(maps)
        for form in ("gather", "product")
    )
    np.testing.assert_allclose(gather, product, rtol=1e-5, atol=1e-6)


def test_misshapen_maps_are_refused():
    with pytest.raises(ValueError, match=r"maps must be \[B h w D\] and points \[B N 2\], got"):
        module.sample(jnp.ones((1, 4, 3)), jnp.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="None, 'gather' or 'product'"):
        module.sample(jnp.ones((1, 4, 3, 1)), jnp.ones((1, 2, 2)), implementation="xla")


# --- points inside of a mask


def test_too_few_pixels_are_all_there_and_some_again():
    mask = np.zeros((4, 6), bool)  # 4 high, 6 wide
    mask[1, 5] = mask[3, 0] = mask[0, 5] = True
    found = module.inside(mask, 8, np.random.default_rng(0))
    pixels = np.array([[0, 3 / 4], [5 / 6, 0], [5 / 6, 1 / 4]], np.float32)  # (x, y), column after column
    np.testing.assert_array_equal(found[:3], pixels)
    assert found.dtype == np.float32
    assert all(any((p == q).all() for q in pixels) for p in found[3:])
    np.testing.assert_array_equal(module.inside(mask, 3, np.random.default_rng(0)), pixels)


def test_of_too_many_pixels_a_random_choice_has_each_at_most_once():
    mask = np.ones((9, 7), bool)
    found = module.inside(mask, 20, np.random.default_rng(0))
    assert len({tuple(p) for p in found.tolist()}) == 20
    assert not np.array_equal(found, module.inside(mask, 20, np.random.default_rng(1)))
    assert (found < 1).all()
    assert (found >= 0).all()


def test_once_leaves_the_rest_nowhere():
    mask = np.eye(3, dtype=bool)
    found = module.inside_once(mask, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(found[:, 0] >= 0, [True, True, True, False, False])
    assert not np.asarray(module.by_product(jnp.ones((1, 2, 2, 1)), found[None, 3:])).any()
    assert len(module.inside_once(np.ones((3, 3)), 5, np.random.default_rng(0))) == 5


def test_a_mask_without_pixels_or_of_another_size_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"the mask \[4, 6\] is empty"):
        module.inside(np.zeros((4, 6)), 8, rng)
    with pytest.raises(ValueError, match=r"must be \[6, 4\], as the picture's \(height, width\), got \[4, 6\]"):
        module.inside(np.ones((4, 6)), 8, rng, size=(6, 4))
