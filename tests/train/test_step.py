"""One update: what a task may ask of it, shown by toy systems of a few lines."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import linen as nn

from mmjax.nn.outputs import Aux
from mmjax.parallel.mesh import MeshShape
from mmjax.train import optim, step, trees
from mmjax.train.optim import SGD, AdamW, Partitioned
from mmjax.train.task import Task, init_model


def start(experiment, mesh=None, loaded=None):
    """The step, its first state, and a function from i to batch i on the mesh."""
    mesh = mesh or MeshShape(data=1).build(jax.devices()[:1])
    runner = step.build(experiment, mesh, loaded)
    batches = experiment.data.batches(experiment.batch_size, experiment.seed)
    batch = lambda i: runner.place(batches[i])  # noqa: E731
    return runner, runner.init(batch(0), loaded), batch


def values(tree):
    return {path: np.asarray(x) for path, x in trees.leaves(tree).items()}


def same(one, other, atol=0.0):
    one, other = values(one), values(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=0, atol=atol, err_msg=path)


def test_a_step_is_one_gradient_step_of_the_loss():
    experiment = toys.experiment(optimizer=SGD(0.1))
    runner, state, batch = start(experiment)
    before = values(state.variables["params"])
    rng = jax.random.fold_in(step.key(experiment.seed, "step"), 0)
    loss = lambda params: toys.regression(toys.Net(), {"params": params}, batch(0), rng, 0)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(state.variables["params"])
    gradient = values(gradient)
    state, metrics = runner.run(state, batch(0))
    for path, after in values(state.variables["params"]).items():
        np.testing.assert_allclose(after, before[path] - 0.1 * gradient[path], atol=1e-6)
    norm = np.sqrt(sum((x**2).sum() for x in gradient.values()))
    np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"], metrics["lr"]], [value, norm, 0.1], rtol=1e-5)
    assert int(state.step) == 1
    after = jax.device_get(state.variables)
    rng = jax.random.fold_in(step.key(experiment.seed, "step"), 1)  # each step draws anew
    second = toys.regression(toys.Net(), after, batch(1), rng, 1)[0]
    np.testing.assert_allclose(runner.run(state, batch(1))[1]["loss"], second, rtol=1e-5)


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=1, fsdp=8), MeshShape(data=2, fsdp=2, tensor=2)])
def test_eight_devices_compute_what_one_does(shape):
    experiment = toys.experiment()
    alone, one, batch = start(experiment)
    runner, eight, batch8 = start(experiment, shape.build())
    same(one.variables, eight.variables, atol=1e-6)  # the same draws; shards round their last bit on their own
    for i in range(3):
        one, metrics = alone.run(one, batch(i))
        eight, metrics8 = runner.run(eight, batch8(i))
        np.testing.assert_allclose(metrics["loss"], metrics8["loss"], rtol=1e-5)
    same(one, eight, atol=1e-5)
    kernel = eight.variables["params"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * shape.sizes(8)[1] * shape.sizes(8)[2] == kernel.size
    slot = eight.opt_state[1][0].mu["up"]["kernel"]
    assert slot.sharding.is_equivalent_to(kernel.sharding, 2)


def test_a_run_compiles_once_and_plan_sees_the_same_program():
    experiment = toys.experiment()
    runner, state, batch = start(experiment)
    planned = str(runner.trace().jaxpr)
    for i in range(3):
        state, _ = runner.run(state, batch(i))
    assert runner.update._cache_size() == 1
    with jax.set_mesh(runner.mesh):
        ran = runner.update.trace(state, batch(0), runner._key)
    assert planned == str(ran.jaxpr)
    assert runner.lower().as_text() == ran.lower().as_text()


def test_the_state_is_donated():
    runner, state, batch = start(toys.experiment())
    old = jax.tree.leaves(state)
    state, _ = runner.run(state, batch(0))
    assert all(x.is_deleted() for x in old)
    compiled = runner.lower().compile().memory_analysis()
    assert compiled.alias_size_in_bytes >= sum(x.nbytes for x in old)


def teacher_task(**changes):
    """A student follows the average of its own past (one line of DINO)."""

    def loss(model, variables, batch, rng, now):
        target = model.apply({"params": variables["teacher"]}, batch["x"])
        error = jnp.mean((model.apply(variables, batch["x"] + 0.1) - jax.lax.stop_gradient(target)) ** 2)
        return error, Aux({})

    init, follow = optim.with_copy("teacher"), optim.ema("params", "teacher", 0.9)
    return Task(toys.Net(), loss, init=init, after_update=follow, serve="teacher", **changes)


def test_an_averaged_teacher_follows_and_is_what_is_served():
    runner, state, batch = start(toys.experiment(task=teacher_task(), optimizer=SGD(0.5)))
    assert state.opt_state == jax.tree.map(lambda x: x, state.opt_state)
    old = values(state.variables["teacher"])
    same(state.variables["params"], state.variables["teacher"])
    state, _ = runner.run(state, batch(0))  # donates: a teacher in the student's buffers would fail here
    for path, now in values(state.variables["teacher"]).items():
        student = values(state.variables["params"])[path]
        np.testing.assert_allclose(now, 0.9 * old[path] + 0.1 * student, atol=1e-6)
    assert any((old[path] != x).any() for path, x in values(state.variables["params"]).items())
    shown = step.served("teacher", state.variables)
    same(shown["params"], state.variables["teacher"])
    assert "teacher" not in shown


class Codes(nn.Module):
    """Counts how often each of 4 codes is nearest: the skeleton of an averaged codebook."""

    @nn.compact
    def __call__(self, x):
        codes = self.variable("codebook", "codes", lambda: jax.random.normal(self.make_rng("params"), (4, 4)))
        z = nn.Dense(4, name="up")(x)  # [B 4]
        nearest = jnp.argmin(jnp.sum((z[:, None] - codes.value) ** 2, -1), -1)
        return z, nearest, codes.value


def codebook_loss(model, variables, batch, rng, now):
    z, nearest, codes = model.apply(variables, batch["x"])
    chosen = jax.nn.one_hot(nearest, 4)  # [B 4]
    means = chosen.T @ z / jnp.maximum(chosen.sum(0)[:, None], 1)
    value = jnp.mean((z - jax.lax.stop_gradient(codes[nearest])) ** 2)
    return value, Aux({}, {"codebook": {"codes": 0.5 * codes + 0.5 * jax.lax.stop_gradient(means)}})


def test_a_codebook_is_a_collection_that_the_loss_hands_back():
    runner, state, batch = start(toys.experiment(task=Task(Codes(), codebook_loss)), MeshShape().build())
    before = jax.device_get(state.variables)
    z, nearest, _ = Codes().apply(before, jax.device_get(batch(0)["x"]))  # the global batch, on one device
    state, _ = runner.run(state, batch(0))
    expected = 0.5 * before["codebook"]["codes"]
    for code in range(4):
        if (rows := np.asarray(z)[np.asarray(nearest) == code]).size:
            expected[code] += 0.5 * rows.mean(0)
    np.testing.assert_allclose(state.variables["codebook"]["codes"], expected, atol=1e-5)
    assert not any("codebook" in path for path in trees.leaves(state.opt_state))


def test_what_is_not_trainable_has_no_gradient_and_no_slot():
    experiment = toys.experiment(task=Task(toys.Net(), toys.regression, trainable="^down/"))
    runner, state, batch = start(experiment)
    assert not any("up" in path for path in trees.leaves(state.opt_state))
    assert any("mu/down/kernel" in path for path in trees.leaves(state.opt_state))
    before = values(state.variables["params"])
    state, _ = runner.run(state, batch(0))
    after = values(state.variables["params"])
    assert {path for path in before if (before[path] != after[path]).any()} == {"down/kernel", "down/bias"}


class GAN(nn.Module):
    def setup(self):
        self.generator, self.discriminator = nn.Dense(4), nn.Dense(1)

    def __call__(self, x):
        return self.discriminator(self.generator(x))


def gan_loss(model, variables, batch, rng, now):
    """Both players in one scalar: who receives which gradient is said by stop_gradient."""
    frozen = jax.lax.stop_gradient(variables["params"])
    judge = lambda params, image: model.apply({"params": params}, image, method=lambda m, i: m.discriminator(i))  # noqa: E731
    made = model.apply(variables, batch["x"], method=lambda m, x: m.generator(x))
    fool = jnp.mean(nn.softplus(-judge(frozen, made)))
    tell = jnp.mean(nn.softplus(-judge(variables["params"], batch["y"])))
    tell += jnp.mean(nn.softplus(judge(variables["params"], jax.lax.stop_gradient(made))))
    return fool + tell, Aux({"fool": fool, "tell": tell})


def test_the_two_players_of_a_gan_have_an_optimizer_each():
    both = Partitioned({"^generator/": SGD(0.1), "^discriminator/": AdamW(0.01, decay="linear")})
    runner, state, batch = start(toys.experiment(task=Task(GAN(), gan_loss), optimizer=both))
    before, frozen = jax.device_get(state.variables["params"]), jax.device_get(batch(0))
    slots = [path for path in trees.leaves(state.opt_state) if "/mu/" in path]
    assert slots
    assert all("discriminator" in path for path in slots)
    state, metrics = runner.run(state, batch(0))
    assert {"lr/^generator/", "lr/^discriminator/", "fool", "tell"} <= metrics.keys()

    def fool(generator):
        made = frozen["x"] @ generator["kernel"] + generator["bias"]
        scores = made @ before["discriminator"]["kernel"] + before["discriminator"]["bias"]
        return jnp.mean(jnp.log1p(jnp.exp(-scores)))

    gradient = jax.grad(fool)(before["generator"])
    for name, now in state.variables["params"]["generator"].items():
        np.testing.assert_allclose(now, before["generator"][name] - 0.1 * gradient[name], atol=1e-6)
    moved = state.variables["params"]["discriminator"]["kernel"] - before["discriminator"]["kernel"]
    np.testing.assert_allclose(np.abs(moved), 0.01, rtol=1e-2)  # Adam's first step is the rate, whatever the gradient


def test_every_parameter_needs_a_part_of_a_partitioned_optimizer():
    with pytest.raises(ValueError, match="no part of the optimizer matches params/discriminator/bias"):
        start(toys.experiment(task=Task(GAN(), gan_loss), optimizer=Partitioned({"^generator/": SGD(0.1)})))


def rollout(model, variables, batch, rng, now):
    """Acts with the policy as it is now; the loss will see these actions in every update of this batch."""
    assert not isinstance(now, jax.core.Tracer)
    actions = model.apply(variables, batch["x"]) + jax.random.normal(rng, (len(batch["x"]), 4))
    return {"x": batch["x"], "actions": np.asarray(actions), "old": np.full(len(batch["x"]), now, np.float32)}


def policy_loss(model, variables, batch, rng, now):
    half = batch["x"].shape[0] // 2  # two minibatches: even updates take the first rows, odd ones the others
    x, actions = (jax.lax.dynamic_slice_in_dim(batch[name], now % 2 * half, half) for name in ("x", "actions"))
    return jnp.mean((model.apply(variables, x) - actions) ** 2), Aux({"old": batch["old"][0], "first": x[0, 0]})


def test_rollouts_are_made_outside_jit_and_serve_several_updates():
    task = Task(toys.Net(), policy_loss, prepare=rollout, updates=2)
    runner, state, batch = start(toys.experiment(task=task), MeshShape().build())
    seen = []
    for i in range(3):
        prepared = runner.prepare(state, batch(i), 2 * i)
        assert prepared["actions"].sharding.device_set == set(jax.devices())
        for _ in range(2):
            state, metrics = runner.run(state, prepared)
            seen.append((float(metrics["old"]), float(metrics["first"])))
    assert [old for old, _ in seen] == [0, 0, 2, 2, 4, 4]  # the step that each rollout was made at
    assert len({first for _, first in seen}) == 6  # every update saw other rows
    assert runner.update._cache_size() == 1


def test_steps_must_be_whole_batches_of_updates():
    with pytest.raises(ValueError, match="multiple of task.updates=4"):
        toys.experiment(task=Task(toys.Net(), toys.regression, updates=4), steps=6)


def wrong(returned):
    return lambda model, variables, batch, rng, now: returned(model.apply(variables, batch["x"]), variables)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (wrong(lambda y, v: (y.mean(0), Aux({}))), r"one number over the global batch, got shape \[4\]"),
        (wrong(lambda y, v: (y.mean(), Aux({"each": y}))), r"metric 'each' must be one number, got shape \[16, 4\]"),
        (wrong(lambda y, v: (y.mean(), Aux({}, {"params": v["params"]}))), "must not hold 'params'"),
        (wrong(lambda y, v: (y.mean(), Aux({}, {"center": y[0]}))), r"changed center from nothing to float32\[4\]"),
    ],
)
def test_a_wrong_loss_is_told_what_is_wrong(loss, message):
    runner, state, batch = start(toys.experiment(task=Task(toys.Net(), loss)))
    with pytest.raises(ValueError, match=message):
        runner.run(state, batch(0))


def test_after_update_must_keep_types():
    halve = lambda variables, now: jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)  # noqa: E731
    runner, state, batch = start(toys.experiment(task=Task(toys.Net(), toys.regression, after_update=halve)))
    with pytest.raises(ValueError, match="after_update changed params/down/bias from float32"):
        runner.run(state, batch(0))


def test_a_clamp_after_the_update_holds():
    clamp = lambda variables, now: jax.tree.map(lambda x: jnp.clip(x, -0.01, 0.01), variables)  # noqa: E731
    runner, state, batch = start(toys.experiment(task=Task(toys.Net(), toys.regression, after_update=clamp)))
    state, _ = runner.run(state, batch(0))
    assert max(np.abs(x).max() for x in values(state.variables).values()) == np.float32(0.01)


def test_a_batch_that_the_mesh_cannot_split_is_named():
    with pytest.raises(ValueError, match="batch_size 12 does not divide over the mesh's 8"):
        step.build(toys.experiment(batch_size=12), MeshShape().build())


def test_nothing_trainable_is_an_error():
    with pytest.raises(ValueError, match="trainable='nose' matches no parameter"):
        start(toys.experiment(task=Task(toys.Net(), toys.regression, trainable="nose")))


def test_loaded_parts_are_in_the_first_state_and_frozen_networks_stay_apart():
    """Two sources: half of the model, and a frozen judge in a collection of its own, in bfloat16."""
    up = {"kernel": jnp.full((8, 16), 0.25), "bias": jnp.zeros(16)}
    judge = {"params": {"w": jnp.full((4,), 2.0, jnp.bfloat16)}}
    kept = jax.device_get(judge)

    def loss(model, variables, batch, rng, now):
        y = model.apply({"params": variables["params"]}, batch["x"])
        return jnp.mean(y * variables["judge"]["params"]["w"]), Aux({})

    loaded = {"params": {"up": up}, "judge": judge}
    runner, state, batch = start(toys.experiment(task=Task(toys.Net(), loss)), loaded=loaded)
    assert (np.asarray(state.variables["params"]["up"]["kernel"]) == 0.25).all()
    assert not any("judge" in path for path in trees.leaves(state.opt_state))
    state, _ = runner.run(state, batch(0))
    same(state.variables["judge"], kept)
    assert state.variables["judge"]["params"]["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ({"params": {"nose": {"kernel": jnp.ones(3)}}}, "params/nose, which the model does not have"),
        ({"params": {"up": {"kernel": jnp.ones((8, 7))}}}, r"params/up/kernel \[8, 7\], but the model has \[8, 16\]"),
        ({"params": {"up": jnp.ones(3)}}, r"params/up \[3\], but the model has a subtree"),
    ],
)
def test_loaded_parts_that_do_not_fit_are_named(loaded, message):
    make = partial(init_model, toys.Net(), jax.random.key(0), {"x": jnp.ones((2, 8))})
    with pytest.raises(ValueError, match=message):
        make(loaded)


def test_a_batch_without_the_models_inputs_is_named():
    with pytest.raises(ValueError, match="Net.__call__ needs x, but the batch holds images"):
        init_model(toys.Net(), jax.random.key(0), {"images": jnp.ones(3)}, {})


def test_seeds_differ_and_streams_do_not_overlap():
    first = [np.asarray(jax.random.key_data(step.key(seed, name))) for seed in (0, 1) for name in step.STREAMS]
    at_steps = [np.asarray(jax.random.key_data(jax.random.fold_in(step.key(0, "step"), i))) for i in range(5)]
    assert len({x.tobytes() for x in first + at_steps}) == 2 * len(step.STREAMS) + 5
    runs = [start(dataclasses.replace(toys.experiment(), seed=seed))[1] for seed in (0, 1)]
    kernels = [np.asarray(state.variables["params"]["up"]["kernel"]) for state in runs]
    assert (kernels[0] != kernels[1]).any()
