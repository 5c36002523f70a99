"""Quantisers against vector-quantize-pytorch and haiku (stored, tests/goldens/make_quantize.py); the same in blocks and
on a mesh; what users rely on."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.ops import quantize

GOLDEN = dict(np.load(Path(__file__).parents[1] / "goldens" / "quantize.npz"))
DECAY = 0.7
SLOW = pytest.mark.slow
RNG = np.random.default_rng(0)
Z, CODES = RNG.normal(size=(16, 3, 4)).astype(np.float32), RNG.normal(size=(23, 4)).astype(np.float32)


moved, revived = jax.jit(quantize.moved), jax.jit(quantize.revived)


def one(prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): x for name, x in GOLDEN.items() if name.startswith(prefix)}


def by_hand(z, codes):
    return np.linalg.norm(np.float64(z)[..., None, :] - np.float64(codes), axis=-1).argmin(-1)


@functools.partial(jax.jit, static_argnames=("gradient", "cosine"))
def step(state, batch, factor, gradient, cosine):
    """As VectorQuantize in training: outputs from the old codes, then the new codes."""

    def value(z):
        z = quantize.unit(z) if cosine else z
        ids = quantize.nearest(z, state["codes"])
        quantised = quantize.lookup(state["codes"], ids)
        loss = 0.25 * quantize.commitment_loss(z, quantised)
        out = gradient(z, quantised)
        return jnp.sum(out * factor) + loss, (out, ids, loss, quantize.moved(state, z, ids, DECAY))

    slope, (out, ids, loss, after) = jax.grad(value, has_aux=True)(batch)
    after = {**after, "codes": quantize.unit(after["codes"])} if cosine else after
    return after, {"out": out, "ids": ids, "loss": loss, "gradient": slope}


@pytest.mark.parametrize("kind", [pytest.param("straight", marks=SLOW), "rotated", pytest.param("cosine", marks=SLOW)])
def test_three_steps_of_training_equal_vector_quantize_pytorch(kind):
    codes = quantize.unit(GOLDEN["codes"]) if kind == "cosine" else GOLDEN["codes"]
    state, gradient = quantize.begin(codes), quantize.rotated if kind == "rotated" else quantize.straight_through
    for i in range(3):
        state, found = step(state, GOLDEN["batches"][i], GOLDEN["factors"][i], gradient, kind == "cosine")
        wanted = one(f"{kind}/{i}/")
        np.testing.assert_array_equal(found.pop("ids"), wanted["ids"])
        for name, x in (found | state).items():
            close(f"{kind} {i} {name}", x, wanted[name], relative=1e-5)
    if kind != "cosine":
        assert (GOLDEN["straight/2/ids"] != 3).all(), "the golden should hold a code that nothing chooses"


@pytest.mark.slow
def test_the_loss_of_equation_3_and_its_gradients_equal_haiku():
    def value(codes, z):
        ids = quantize.nearest(z, codes)
        quantised = quantize.lookup(codes, ids)
        loss = quantize.codebook_loss(z, quantised) + 0.3 * quantize.commitment_loss(z, quantised)
        return jnp.sum(quantize.straight_through(z, quantised) * GOLDEN["factors"][0]) + loss, (ids, loss)

    slopes = jax.jit(jax.grad(value, (0, 1), has_aux=True))
    (of_codes, of_z), (ids, loss) = slopes(GOLDEN["codes"], GOLDEN["batches"][0])
    wanted = one("haiku/")
    np.testing.assert_array_equal(ids, wanted["ids"])
    close("loss", loss, wanted["loss"], relative=1e-5)
    close("gradient", of_z, wanted["gradient"], relative=1e-5)
    close("gradient of codes", of_codes, wanted["gradient_codes"], relative=1e-5)
    close("perplexity", quantize.usage(ids, 7)["perplexity"], wanted["perplexity"], relative=1e-5)
    after = moved(quantize.begin(GOLDEN["codes"]), GOLDEN["batches"][0], ids, DECAY)
    close("codes", after["codes"], wanted["codes"], relative=1e-5)


def test_fsq_equals_vector_quantize_pytorch_and_its_ids_come_back():
    wanted = one("fsq/")
    levels = tuple(int(x) for x in wanted["levels"])

    @jax.jit
    def run(z, factor):
        found, back = jax.vjp(lambda z: quantize.fsq(z, levels), z)
        return found, back(factor)[0]

    found, slope = run(wanted["z"], wanted["factor"])
    close("quantised", found, wanted["out"], relative=1e-5)
    close("gradient", slope, wanted["gradient"], relative=1e-4)
    np.testing.assert_array_equal(quantize.fsq_ids(found, levels), wanted["ids"])
    every = quantize.fsq_codes(np.arange(60), levels)
    np.testing.assert_allclose(every, wanted["codebook"], atol=1e-6)
    np.testing.assert_array_equal(quantize.fsq_ids(every, levels), np.arange(60))


@pytest.mark.parametrize("block", [pytest.param(None, marks=SLOW), 5])
def test_lfq_equals_vector_quantize_pytorch_and_its_ids_come_back(block):
    wanted = one("lfq/")

    def value(z):
        each, together = quantize.sign_entropies(z, sharpness=0.8, block=block)
        out = quantize.signs(z)
        return jnp.sum(out * wanted["factor"]) + each - 0.5 * together, (out, each, together)

    slope, (out, each, together) = jax.jit(jax.grad(value, has_aux=True))(wanted["z"])
    close("quantised", out, wanted["out"], relative=1e-5)
    close("entropy of each", each, wanted["each"], relative=1e-5)
    close("entropy of all", together, wanted["together"], relative=1e-5)
    close("gradient", slope, wanted["gradient"], relative=1e-4)
    np.testing.assert_array_equal(quantize.sign_ids(wanted["z"]), wanted["ids"])
    np.testing.assert_array_equal(quantize.sign_codes(np.arange(16), 4), wanted["codebook"])
    np.testing.assert_array_equal(quantize.sign_ids(wanted["codebook"]), np.arange(16))


def test_blocks_of_any_size_find_the_same_and_of_equals_the_first():
    codes = np.concatenate([CODES, CODES[4:9]])  # equals in other blocks
    for block in (7, 100):
        np.testing.assert_array_equal(quantize.nearest(Z, codes, block=block), by_hand(Z, codes))
        count, total = quantize.tally(Z, by_hand(Z, codes), 28, block=block)
        np.testing.assert_array_equal(count, np.bincount(by_hand(Z, codes).ravel(), minlength=28))
        wanted = [Z[by_hand(Z, codes) == k].sum(0) for k in range(28)]
        np.testing.assert_allclose(total, wanted, atol=1e-5)


@pytest.mark.slow
def test_the_distances_of_a_large_codebook_never_stand_in_memory_at_once():
    z, codes = jax.ShapeDtypeStruct((2**14, 4), jnp.float32), jax.ShapeDtypeStruct((2**14, 4), jnp.float32)

    def run(z, codes):
        ids = quantize.nearest(z, codes)
        return quantize.moved(quantize.begin(codes), z, ids, 0.9)

    used = jax.jit(run).lower(z, codes).compile().memory_analysis()
    assert used.temp_size_in_bytes < 3 * 4 * quantize.CELLS < 4 * 2**28


@functools.partial(jax.jit, static_argnames="block")
def renewed(state, z, block=None):
    ids = quantize.nearest(z, state["codes"], block=block)
    after = quantize.moved(state, z, ids, 0.6)
    return ids, quantize.revived(after, z, jax.random.key(3), threshold=0.9)


@pytest.mark.parametrize("block", [pytest.param(None, marks=SLOW), 5])
def test_eight_devices_move_and_revive_the_codes_that_one_does(block):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    state = quantize.begin(CODES)
    ids, wanted = renewed(state, Z, block)
    assert 0 < (np.asarray(wanted["count"]) == np.float32(0.9)).sum() < 23
    with jax.set_mesh(mesh):
        compiled = renewed.lower(state, jax.device_put(Z, rows), block).compile()
        found_ids, found = compiled(state, jax.device_put(Z, rows))
    assert found_ids.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_array_equal(found_ids, ids)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    gathered = re.findall(r"f32\[([\d,]*)\][^=]*? all-gather\(", compiled.as_text())
    assert all(np.prod([int(n) for n in shape.split(",")]) <= CODES.size for shape in gathered), gathered
    local, _ = renewed(state, Z[:2], block)  # a device's own part knows less
    alone = moved(state, Z[:2], local, 0.6)
    assert np.abs(np.asarray(alone["codes"]) - np.asarray(wanted["codes"])).max() > 0.1


def test_dead_codes_start_again_at_vectors_of_the_batch_each_at_its_own():
    state = quantize.begin(CODES) | {"count": jnp.arange(23.0)}
    after = revived(state, Z, jax.random.key(0), 5.0)
    flat = Z.reshape(-1, 4)
    rows = [np.flatnonzero((flat == np.asarray(code)).all(-1)) for code in after["codes"][:5]]
    assert len({int(row[0]) for row in rows}) == 5
    np.testing.assert_array_equal(after["count"][:5], 5.0)
    np.testing.assert_allclose(after["total"][:5], 5 * after["codes"][:5])
    for name in state:
        np.testing.assert_array_equal(after[name][5:], state[name][5:])
    few = revived(state, Z[0, :2], jax.random.key(0), 5.0)  # two vectors for five dead codes
    np.testing.assert_array_equal(few["count"][:6], [5, 5, 2, 3, 4, 5])
    other = revived(state, Z, jax.random.key(1), 5.0)
    assert (np.asarray(other["codes"][:5]) != np.asarray(after["codes"][:5])).any()


@pytest.mark.slow
def test_no_gradient_reaches_codes_that_move_by_themselves():
    def value(codes):
        state = quantize.begin(codes)
        ids = quantize.nearest(Z, codes)
        quantised = quantize.lookup(codes, ids)
        through = quantize.straight_through(Z, quantised).sum() + quantize.rotated(Z, quantised).sum()
        return through + quantize.commitment_loss(Z, quantised) + quantize.nearest(Z, state["codes"]).sum()

    assert not jax.jit(jax.grad(value))(CODES).any()


def test_counts_are_smoothed_as_laplace_did():
    """With an epsilon that can be seen: the stored steps have 1e-5."""
    ids = by_hand(Z, CODES)
    after = jax.jit(functools.partial(quantize.moved, epsilon=0.5))(quantize.begin(CODES), Z, ids, 0.25)
    chosen = ids.ravel() == np.arange(23)[:, None]
    count = 0.25 + 0.75 * chosen.sum(-1)
    smooth = (count + 0.5) / (count.sum() + 23 * 0.5) * count.sum()
    total = 0.25 * CODES + 0.75 * chosen @ Z.reshape(-1, 4)
    np.testing.assert_allclose(after["codes"], total / smooth[:, None], rtol=1e-4, atol=1e-5)


def test_usage_of_a_batch():
    found = jax.jit(lambda ids: quantize.usage(ids, 8))(np.array([[0, 1], [1, 0]]))
    np.testing.assert_allclose(found["perplexity"], 2, rtol=1e-6)
    np.testing.assert_allclose(found["codes_used"], 0.25)


def test_bad_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="z holds NaN or infinite"):
        quantize.nearest(np.full((2, 4), np.nan), CODES)
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[23, 4\]"):
        quantize.nearest(np.zeros((2, 3)), CODES)
    with pytest.raises(ValueError, match=r"in \[0, 23\), got -1 to 23"):
        quantize.lookup(jnp.asarray(CODES), np.array([-1, 23]))
    with pytest.raises(ValueError, match="whole numbers, got float32"):
        quantize.lookup(jnp.asarray(CODES), np.zeros(2, np.float32))
    inside = jax.jit(quantize.lookup)(CODES, jnp.array([-1, 22, 23]))
    np.testing.assert_array_equal(np.isnan(inside).all(-1), [True, False, True])
    with pytest.raises(ValueError, match=r"levels must be 2 numbers.* got \[4, 2\]"):
        quantize.fsq(np.zeros((1, 2)), (4, 2))
    with pytest.raises(ValueError, match=r"in \[0, 12\), got 0 to 12"):
        quantize.fsq_codes(np.arange(13), (4, 3))
    with pytest.raises(ValueError, match="1 to 31 numbers, got 32"):
        quantize.sign_ids(np.zeros((1, 32)))


def test_kmeans_ends_where_every_code_is_the_mean_of_what_is_nearest_to_it():
    z = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    codes = np.asarray(quantize.kmeans(z, 12, jax.random.key(0), steps=60))
    chosen = np.square(z[:, None] - codes).sum(-1).argmin(1)
    np.testing.assert_allclose(codes, [z[chosen == k].mean(0) for k in range(12)], atol=1e-5)
    doubled = np.repeat(z[:10], 30, axis=0)  # ten places for twelve codes: two are nearest to nothing, and stay vectors
    codes = np.asarray(quantize.kmeans(doubled, 12, jax.random.key(0)))
    np.testing.assert_allclose(np.square(codes[:, None] - z[:10]).sum(-1).min(1), 0, atol=1e-9)
    with pytest.raises(ValueError, match="at least num_codes=301"):
        quantize.kmeans(z, 301, jax.random.key(0))
