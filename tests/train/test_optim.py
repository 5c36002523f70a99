"""Optimizers against accounts that share no code with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.train import optim
from mmjax.train.optim import SGD, AdamW, Muon, Noam, Partitioned

PARAMS = {"layers": {"up": {"kernel": np.ones((3, 2, 4)), "bias": np.ones((3, 4))}}, "scale": np.ones(())}


def run(optimizer, params, gradients, steps=10):
    params = jax.tree.map(jnp.float32, params)
    transform = optimizer.build(steps, params)
    state, update = transform.init(params), jax.jit(transform.update)
    for gradient in gradients:
        changes, state = update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, changes)
    return params


def random(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), PARAMS)


def adamw_in_numpy(params, gradients, rates, decay, clip, b1=0.9, b2=0.95, eps=1e-6):
    """Loshchilov & Hutter's algorithm 2, for flat dicts; decay: name -> weight decay."""
    m, v = ({name: np.zeros_like(x) for name, x in params.items()} for _ in range(2))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = np.sqrt(sum((x**2).sum() for x in gradient.values()))
        for name, x in params.items():
            g = gradient[name] * min(1.0, clip / norm)
            m[name], v[name] = b1 * m[name] + (1 - b1) * g, b2 * v[name] + (1 - b2) * g * g
            step = (m[name] / (1 - b1**t)) / (np.sqrt(v[name] / (1 - b2**t)) + eps)
            params = {**params, name: x - rate * (step + decay[name] * x)}
    return params


def flat(tree):
    return {"kernel": tree["layers"]["up"]["kernel"], "bias": tree["layers"]["up"]["bias"], "scale": tree["scale"]}


def test_adamw_clips_warms_up_and_decays_by_path():
    """The stacked bias is 2-D and must not decay; a rule by ndim would decay it."""
    ours = AdamW(0.1, warmup=2, decay="linear", end=0.1, b2=0.95, eps=1e-6, weight_decay=0.3, clip=0.5)
    gradients = [random(seed) for seed in range(4)]
    rates = [0.05, 0.1, 0.1, 0.1 * (1 - 0.9 / 8)]  # half, all, all, one of eight steps down to a tenth
    decay = {"kernel": 0.3, "bias": 0.0, "scale": 0.0}
    expected = adamw_in_numpy(flat(random(9)), [flat(g) for g in gradients], rates, decay, clip=0.5)
    found = flat(run(ours, random(9), gradients))
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=2e-6, err_msg=name)


def orthogonal_in_numpy(matrix):
    """Jordan's five steps towards the orthogonal factor, on the side that is shorter."""
    x = matrix / np.linalg.norm(matrix)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if x.shape == matrix.shape else x.T


def test_muon_turns_each_layers_matrix_and_moves_all_else_as_adamw():
    ours = Muon(0.1, warmup=2, decay="constant", weight_decay=0.3, clip=0.5)
    gradient, before = random(0), random(9)
    found = flat(run(ours, before, [gradient]))
    expected = adamw_in_numpy(
        flat(before), [flat(gradient)], [0.05], {"kernel": 0.3, "bias": 0.0, "scale": 0.0}, clip=0.5, b2=0.999, eps=1e-8
    )
    for name in ("bias", "scale"):
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6, err_msg=name)
    for layer, kernel in enumerate(before["layers"]["up"]["kernel"]):  # [2, 4]
        step = 0.2 * 4**0.5 * orthogonal_in_numpy(gradient["layers"]["up"]["kernel"][layer])
        np.testing.assert_allclose(found["kernel"][layer], kernel - 0.05 * (step + 0.3 * kernel), atol=2e-6)
    # Momentum: an opposite gradient after many alike ones does not turn the matrix back.
    alike = {**random(0), "layers": {"up": {"kernel": -gradient["layers"]["up"]["kernel"], "bias": np.zeros((3, 4))}}}
    still = dataclasses.replace(ours, weight_decay=0.0)
    *_, eighth, ninth = [flat(run(still, before, [gradient] * 8 + [alike] * n))["kernel"] for n in (0, 1)]
    eight = flat(run(still, before, [gradient] * 7))["kernel"]
    assert np.all(np.sum((ninth - eighth) * (eighth - eight), axis=(1, 2)) > 0)


@pytest.mark.parametrize(
    ("decay", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_schedules_rise_to_the_peak_and_fall_to_the_end(decay, middle, last):
    rate = optim.schedule(2.0, steps=30, warmup=10, decay=decay, end=0.1)
    np.testing.assert_allclose([rate(0), rate(4), rate(9), rate(10)], [0.2, 1.0, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose([rate(20), rate(30), rate(99)], [2 * middle, 2 * last, 2 * last], rtol=1e-6)


def test_an_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="decay must be one of cosine, linear, constant, got 'cosin'"):
        AdamW(0.1, decay="cosin").rates(3)


def test_momentum_looks_ahead():
    gradients = [jax.tree.map(np.ones_like, PARAMS)] * 2
    found = run(SGD(0.1, momentum=0.5), PARAMS, gradients)
    # Nesterov: velocities 1 and 1.5; steps 1 + 0.5 * 1 and 1 + 0.5 * 1.5.
    np.testing.assert_allclose(found["scale"], 1 - 0.1 * (1.5 + 1.75), rtol=1e-6)


def test_parts_are_clipped_apart_and_the_first_match_decides():
    both = Partitioned({"up/kernel": AdamW(0.1, decay="constant", clip=1e-3), "": SGD(1.0)})
    gradient = random(0)
    found = run(both, PARAMS, [gradient])
    np.testing.assert_allclose(found["layers"]["up"]["bias"], 1 - gradient["layers"]["up"]["bias"], atol=1e-6)
    moved = 1 - found["layers"]["up"]["kernel"]
    np.testing.assert_allclose(moved, 0.1 * np.sign(gradient["layers"]["up"]["kernel"]), atol=1e-3)
    assert set(both.rates(10)) == {"lr/up/kernel", "lr/"}


def test_averages_are_float32_copies():
    variables = {"params": {"w": jnp.full(3, 1.0, jnp.bfloat16)}}
    init = optim.with_copy("ema", init=lambda model, rng, batch, loaded: variables)
    first = init(None, None, None, {})
    assert first["ema"]["w"].dtype == jnp.float32
    assert first["ema"]["w"] is not first["params"]["w"]
    moved = {"params": {"w": jnp.full(3, 2.0, jnp.bfloat16)}, "ema": first["ema"]}
    after = optim.ema("params", "ema", 0.75)(moved, 0)
    np.testing.assert_array_equal(after["ema"]["w"], np.full(3, 1.25, np.float32))
    rising = optim.ema("params", "ema", lambda now: now / 4)(moved, jnp.int32(1))
    np.testing.assert_array_equal(rising["ema"]["w"], np.full(3, 1.75, np.float32))


def test_noam_has_the_papers_rates():
    rate = Noam(width=512).rates(100_000)["lr"]
    assert float(rate(3_999)) == pytest.approx(6.98771e-4, rel=1e-5)  # the peak, at the 4,000th update
    for step in (1, 100, 4_000, 16_000, 100_000):  # section 5.3, equation 3
        assert float(rate(step - 1)) == pytest.approx(512**-0.5 * min(step**-0.5, step * 4_000**-1.5), rel=1e-5)
    second = Noam(width=512, warmup=8_000, factor=2.0).rates(1)["lr"]
    assert float(second(7_999)) == pytest.approx(9.88212e-4, rel=1e-5)  # tensor2tensor's version 2


def test_noam_is_adam_with_the_papers_numbers():
    optimizer, gradients = Noam(width=512, warmup=3), [random(seed) for seed in range(5)]
    rates = [float(optimizer.rates(5)["lr"](jnp.float32(count))) for count in range(5)]
    found = run(optimizer, PARAMS, gradients)

    def flat(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): np.asarray(x, float) for path, x in leaves}

    expected = adamw_in_numpy(
        flat(PARAMS),
        [flat(one) for one in gradients],
        rates,
        dict.fromkeys(flat(PARAMS), 0.0),
        np.inf,
        b2=0.98,
        eps=1e-9,
    )
    for name, x in flat(found).items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-4, err_msg=name)


def test_cosine_is_the_originals_schedule():
    """facebookresearch/dino, utils.cosine_scheduler: numpy's linspace, then i / n for i = 0 ... n - 1."""
    warm, rest = np.linspace(0.1, 0.8, 5), np.arange(15)
    wanted = np.concatenate([warm, 0.2 + 0.5 * (0.8 - 0.2) * (1 + np.cos(np.pi * rest / 15))])
    value = optim.cosine(0.8, 0.2, steps=20, warmup=5, start=0.1)
    np.testing.assert_allclose([value(i) for i in range(20)], wanted, rtol=1e-6)
    np.testing.assert_allclose([value(20), value(99)], 0.2, rtol=1e-6)
    np.testing.assert_allclose([optim.cosine(0.8, 0.2, 20, warmup=1)(i) for i in (0, 1)], [0, 0.8], rtol=1e-6)


def attention_tree(seed):
    """Two layers of fused attention as three arrays, and a head with a last layer."""
    rng = np.random.default_rng(seed)
    layers = {"attention": {name: {"kernel": rng.normal(size=(2, 3, 3))} for name in ("query", "key", "value")}}
    layers["mlp"] = {"up": {"bias": rng.normal(size=(2, 4))}}
    backbone = {"layers": layers, "pos_embed": rng.normal(size=(5, 3)), "norm": {"scale": rng.normal(size=3)}}
    return {"backbone": backbone, "head": {"prototypes": {"kernel": rng.normal(size=(3, 7))}}}


def norm(*arrays):
    return np.sqrt(sum((x**2).sum() for x in arrays))


def test_arrays_are_clipped_one_by_one_in_each_layer_and_attention_as_one():
    gradient = jax.tree.map(np.float32, attention_tree(0))
    clipped, _ = optim.clip_each(1.5).update(gradient, optax.EmptyState())
    ours, theirs = (tree["backbone"]["layers"]["attention"] for tree in (clipped, gradient))
    for layer in range(2):
        parts = [theirs[name]["kernel"][layer] for name in ("query", "key", "value")]
        share = min(1, 1.5 / (norm(*parts) + 1e-6))
        assert share < 1
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            np.testing.assert_allclose(ours[name]["kernel"][layer], share * part, rtol=1e-6)
        bias = gradient["backbone"]["layers"]["mlp"]["up"]["bias"][layer]
        found = clipped["backbone"]["layers"]["mlp"]["up"]["bias"][layer]
        np.testing.assert_allclose(found, min(1, 1.5 / norm(bias)) * bias, rtol=1e-5)
    small = optim.clip_each(1e3).update(gradient, optax.EmptyState())[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), small, gradient)


def test_parts_of_a_model_are_clipped_by_their_own_norms():
    gradient = jax.tree.map(np.float32, attention_tree(1))
    clipped, _ = optim.clip_parts(1.5).update(gradient, optax.EmptyState())
    for part in gradient:
        leaves = jax.tree.leaves(gradient[part])
        share = 1.5 / (norm(*leaves) + 1e-6)
        for ours, theirs in zip(jax.tree.leaves(clipped[part]), leaves, strict=True):
            np.testing.assert_allclose(ours, share * theirs, rtol=1e-5)


def by_hand(start, gradients, settings, first, scale=1.0, decayed=True):
    """One array under CosineAdamW: moments from update `first` on, moved from settings' frozen_steps on."""
    m, v, x, seen = np.zeros_like(start), np.zeros_like(start), start.copy(), 0
    for count, g in enumerate(gradients):
        if count >= first:
            seen += 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        if count >= settings["frozen"]:
            rate = 1e-3 + (0.1 - 1e-3) / 2 * (1 + np.cos(np.pi * count / 6))
            decay = 0.4 + (0.04 - 0.4) / 2 * (1 + np.cos(np.pi * count / 6))
            direction = m / (1 - 0.9**seen) / (np.sqrt(v / (1 - 0.999**seen)) + 1e-8)
            x = x - rate * scale * (direction + decay * x * decayed)
    return x


@pytest.mark.parametrize(("moments_wait", "first"), [(True, 2), (False, 0)])
def test_the_last_layer_waits_with_or_without_its_moments(moments_wait, first):
    ours = optim.CosineAdamW(0.1, end=1e-3, clip=None, frozen_steps=2, moments_wait=moments_wait)
    gradients = [attention_tree(seed) for seed in range(4)]
    found = run(ours, attention_tree(9), gradients, steps=6)

    def array(tree, *path):
        return array(tree[path[0]], *path[1:]) if path else tree

    for path, waits, decayed in (
        (("head", "prototypes", "kernel"), True, True),
        (("backbone", "pos_embed"), False, True),
        (("backbone", "layers", "mlp", "up", "bias"), False, False),
        (("backbone", "norm", "scale"), False, False),
    ):
        late = {"frozen": 2 if waits else 0}
        each = [array(g, *path) for g in gradients]
        wanted = by_hand(array(attention_tree(9), *path), each, late, first if waits else 0, decayed=decayed)
        # Float32 against float64, over moves of 0.1.
        np.testing.assert_allclose(array(found, *path), wanted, atol=5e-6, err_msg="/".join(path))


def test_rates_fall_from_layer_to_layer_downwards():
    scale = optim.LayerDecay(0.5, depth=2, patches=0.2)
    gradients = [attention_tree(seed) for seed in range(3)]
    found = run(optim.CosineAdamW(0.1, end=1e-3, clip=None, scale=scale), attention_tree(9), gradients, steps=6)
    start = attention_tree(9)
    for layer, factor in ((0, 0.25), (1, 0.5)):  # the last layer is half as fast as what follows it
        each = [g["backbone"]["layers"]["mlp"]["up"]["bias"][layer] for g in gradients]
        before = start["backbone"]["layers"]["mlp"]["up"]["bias"][layer]
        wanted = by_hand(before, each, {"frozen": 0}, 0, factor, decayed=False)
        np.testing.assert_allclose(found["backbone"]["layers"]["mlp"]["up"]["bias"][layer], wanted, atol=5e-6)
    wanted = by_hand(
        start["backbone"]["pos_embed"], [g["backbone"]["pos_embed"] for g in gradients], {"frozen": 0}, 0, 0.125
    )
    np.testing.assert_allclose(found["backbone"]["pos_embed"], wanted, atol=5e-6)
    assert scale("backbone/patch_embed/kernel", None) == 0.2 * 0.125
    assert scale("backbone/norm/scale", None) == scale("head/up/kernel", None) == 1
