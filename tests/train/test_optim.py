"""Optimizers against accounts that share no code with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.train import optim
from mmjax.train.optim import SGD, AdamW, Noam, Partitioned

PARAMS = {"layers": {"up": {"kernel": np.ones((3, 2, 4)), "bias": np.ones((3, 4))}}, "scale": np.ones(())}


def run(optimizer, params, gradients, steps=10):
    params = jax.tree.map(jnp.float32, params)
    transform = optimizer.build(steps, params)
    state = transform.init(params)
    for gradient in gradients:
        changes, state = transform.update(jax.tree.map(jnp.float32, gradient), state, params)
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
