"""VAR against FoundationVision/VAR (stored, tests/goldens/make_var.py), then what users rely on."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import var_names
import vqgan_names
from clip_names import close, close_trees, group
from einops import rearrange
from jax.sharding import AbstractMesh, AxisType
from safetensors.numpy import save_file

from mmjax import weights
from mmjax.models import var, var_tokenizer
from mmjax.nn import sampling
from mmjax.nn.sampling import Sampling
from mmjax.parallel import mesh as meshes
from mmjax.parallel import rules
from mmjax.weights import var as var_weights

GOLDEN = vqgan_names.floats(np.load(Path(__file__).parents[1] / "goldens" / "var.npz"))
IDS, LABEL, DROPPED = GOLDEN["tokenizer/ids"].astype(np.int32), np.array([3, 0, 1]), np.array([False, True, False])
TOKENIZER = var_tokenizer.Tokenizer(var_names.TOKENIZER)
CASES = ["unit", pytest.param("shared", marks=pytest.mark.slow)]
MODELS = {case: var.VAR(config) for case, config in var_names.CASES.items()}


def variables_of(case: str) -> dict:
    frozen = {"params": var_names.tokenizer(group(GOLDEN, "tokenizer/weights"))}
    return {"params": var_names.transformer(group(GOLDEN, f"{case}/weights")), "tokenizer": frozen}


@functools.cache
def logits_of(case: str):
    return jax.jit(MODELS[case].apply)


@pytest.fixture(scope="module")
def inputs():
    frozen = {"params": var_names.quantiser(group(GOLDEN, "tokenizer/weights"))}
    return jax.jit(functools.partial(var.inputs_of, TOKENIZER))(frozen, IDS)


def test_inputs_equal_the_original(inputs):
    close("inputs", inputs, GOLDEN["inputs"], relative=1e-5)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, IDS).mean()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss_equal_the_original(inputs, case):
    logits = logits_of(case)(variables_of(case), LABEL, inputs, DROPPED)
    close("logits", logits, GOLDEN[f"{case}/logits"], relative=1e-5)
    close("loss", cross_entropy(logits), GOLDEN[f"{case}/loss"], relative=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unit", "shared"])
def test_gradients_equal_the_original(inputs, case):
    def loss(params):
        return cross_entropy(MODELS[case].apply({"params": params}, LABEL, inputs, DROPPED))

    gradients = jax.jit(jax.grad(loss))(variables_of(case)["params"])
    close_trees(gradients, var_names.transformer(group(GOLDEN, f"{case}/gradients")), relative=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_greedy_samples_equal_the_original(case):
    """Scale by scale over kept keys, guided more at each."""
    variables = variables_of(case)
    ids = jax.jit(lambda v: var.sample(MODELS[case], v, jax.random.key(0), LABEL, how=Sampling()))(variables)
    np.testing.assert_array_equal(ids, GOLDEN[f"{case}/ids"])
    assert len(np.unique(ids)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unit", "shared"])
def test_pictures_of_samples_equal_the_original(case):
    ids, variables = GOLDEN[f"{case}/ids"].astype(np.int32), variables_of(case)
    images = jax.jit(functools.partial(TOKENIZER.apply, method="decode"))(variables["tokenizer"], ids)
    close("images", (images + 1) / 2, rearrange(GOLDEN[f"{case}/image"], "b c h w -> b h w c"), relative=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["unit", "shared"])
def test_kept_keys_change_nothing(inputs, case):
    model, variables, sizes = MODELS[case], variables_of(case), var_names.TOKENIZER.sizes

    def steps(variables):
        cache, found = model.init_cache(3), []
        parts = jnp.split(inputs, np.cumsum(sizes[1:])[:-1], axis=1)
        for part in (None, *parts):
            logits, cache = model.apply(variables, LABEL, part, cache, method="extend")
            found.append(logits)
        return jnp.concatenate(found, axis=1)

    whole = logits_of(case)(variables, LABEL, inputs, np.zeros(3, bool))
    close("cached logits", jax.jit(steps)(variables), whole, relative=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_later_scale_does_not_reach_an_earlier_one(inputs, case):
    """And its own scale and the next ones see it."""
    run, variables = logits_of(case), variables_of(case)
    before = run(variables, LABEL, inputs, DROPPED)
    for first, place in ((1, 2), (5, 9), (14, 38)):
        after = run(variables, LABEL, inputs.at[:, place - 1].add(1.0), DROPPED)
        np.testing.assert_array_equal(after[:, :first], before[:, :first])
        assert np.all(np.abs(after - before)[:, first:].max(-1) > 1e-6)


@pytest.mark.slow
def test_a_changed_code_changes_the_scales_behind_it(inputs):
    run = jax.jit(functools.partial(TOKENIZER.apply, method="inputs"))
    frozen = variables_of("unit")["tokenizer"]
    for place, first in ((0, 0), (4, 4), (13, 13), (20, 38)):
        ids = np.array(IDS)
        ids[:, place] = (ids[:, place] + 1) % 11
        same = np.all(np.asarray(run(frozen, ids)) == np.asarray(run(frozen, IDS)), axis=(0, 2))
        assert same[:first].all()
        assert not same[first:].any()


def test_a_dropped_class_is_none(inputs):
    run, variables = logits_of("unit"), variables_of("unit")
    dropped = run(variables, LABEL, inputs, np.ones(3, bool))
    np.testing.assert_array_equal(dropped, run(variables, np.full(3, -1), inputs, np.zeros(3, bool)))
    assert np.abs(dropped - run(variables, LABEL, inputs, np.zeros(3, bool))).max() > 1e-3


def test_what_top_k_and_top_p_leave_equals_the_original():
    filtered = jax.jit(sampling.filtered, static_argnums=2)
    for n in range(3):
        top_k, top_p = GOLDEN[f"filter/{n}/how"]
        how = Sampling(temperature=1.0, top_k=int(top_k), top_p=float(top_p) or 1.0)
        logits, left = (x.reshape(-1, 11) for x in (GOLDEN[f"filter/{n}/logits"], GOLDEN[f"filter/{n}/left"]))
        np.testing.assert_array_equal(filtered(logits, None, how), left)
        assert 0 < np.isinf(left).mean() < 1


@pytest.mark.slow
def test_guidance_rises_from_none_at_the_first_scale():
    """With any guidance, what is likely at the first scale is that of the class alone; without, all scales are."""
    model, variables, label = MODELS["unit"], variables_of("unit"), np.full(64, 2)
    draw = jax.jit(functools.partial(var.sample, model), static_argnames=("guidance", "how"))
    how = Sampling(temperature=1.0)
    free, guided = (draw(variables, jax.random.key(1), label, guidance=g, how=how) for g in (0.0, 8.0))
    np.testing.assert_array_equal(free[:, 0], guided[:, 0])
    assert np.any(free[:, 14:] != guided[:, 14:])
    one = draw(variables, jax.random.key(1), label, guidance=1e-7, how=how)
    assert np.mean(np.asarray(one) == free) > 0.99
    assert free.dtype == jnp.int32
    assert free.min() >= 0
    assert free.max() < 11


@pytest.mark.slow
def test_the_task_loss_drops_classes_and_branches_and_learns():
    config = dataclasses.replace(var.VARConfig.tiny(), drop_path=0.3)
    model, tokenizer = var.VAR(config), var_tokenizer.Tokenizer(config.tokenizer)
    images = np.random.default_rng(0).integers(0, 256, (4, 10, 10, 3)).astype(np.uint8)
    frozen = jax.jit(tokenizer.init)(jax.random.key(0), images)
    ids = jax.jit(functools.partial(tokenizer.apply, method="encode"))(frozen, images)
    batch = {"ids": ids, "label": jnp.array([0, 1, 2, -1])}
    params = jax.jit(model.init)(jax.random.key(1), batch["label"])["params"]

    @jax.jit
    def run(params, rng):
        def value(params):
            return var.loss(model, {"params": params, "tokenizer": frozen}, batch, rng, 0)

        (loss, aux), gradients = jax.value_and_grad(value, has_aux=True)(params)
        return loss, aux.metrics, gradients

    optimizer, losses = optax.adam(1e-2), []
    state = optimizer.init(params)
    for step in range(40):
        loss, metrics, gradients = run(params, jax.random.key(step))
        changes, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, changes)
        losses.append(float(loss))
    assert abs(losses[0] - np.log(16)) < 0.1  # the head says nothing at first
    assert losses[-1] < 0.8 * losses[0]
    sizes = np.array(config.tokenizer.sizes)
    of_scales = np.array([metrics[f"loss_{p}"] for p in config.tokenizer.scales])
    np.testing.assert_allclose(np.sum(of_scales * sizes) / sizes.sum(), metrics["loss"], rtol=1e-5)
    assert run(params, jax.random.key(0))[0] != run(params, jax.random.key(1))[0]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Norms of 32 groups, as published: 32 channels and random weights."""
    half = dataclasses.replace(var_names.HALF, width=32, groups=32)
    config = dataclasses.replace(
        var_names.TOKENIZER, encoder=var_tokenizer.Encoder(half), decoder=var_tokenizer.Decoder(half)
    )
    tmp_path = tmp_path_factory.mktemp("checkpoints")
    rng, shapes = np.random.default_rng(0), var_weights.abstract_tokenizer(var_tokenizer.Tokenizer(config))
    frozen = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    save_file(var_weights.save_tokenizer(var_tokenizer.Tokenizer(config), frozen), tmp_path / "vae.safetensors")
    tensors = {name: np.ascontiguousarray(x) for name, x in group(GOLDEN, "unit/weights").items()}
    return tensors, frozen, tmp_path


def levels(scales: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"lvl_1L": np.repeat(np.arange(len(scales)), [p * p for p in scales])[None]}


def test_checkpoints_of_the_original_are_read_and_written(checkpoints):
    tensors, frozen, folder = checkpoints
    buffers = levels((1, 2, 3, 5)) | {f"blocks.{i}.attn.zero_k_bias": np.zeros(8, np.float32) for i in (0, 1)}
    wrapped = {f"trainer.var_wo_ddp.{name}": x for name, x in {**tensors, **buffers}.items()}
    save_file(wrapped | {"trainer.vae_local.x": np.zeros(1)}, folder / "ar-ckpt.safetensors")
    model, variables = weights.load_var(folder / "ar-ckpt.safetensors", folder / "vae.safetensors")
    expected = dataclasses.replace(var_names.CASES["unit"], tokenizer=model.config.tokenizer, drop_path=0.1 * 2 / 24)
    assert model.config == expected
    assert model.config.tokenizer.scales == (1, 2, 3, 5)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], variables_of("unit")["params"])
    jax.tree.map(np.testing.assert_array_equal, variables["tokenizer"], frozen)
    saved = var_weights.save(model, variables)
    assert saved.keys() == tensors.keys() | buffers.keys() | {"attn_bias_for_masking"}
    for name, tensor in {**tensors, **buffers}.items():
        np.testing.assert_array_equal(saved[name], tensor)
    hidden = np.isinf(saved["attn_bias_for_masking"])[0, 0]
    assert hidden[0, 1:].all()
    assert not hidden[4, :5].any()
    assert not hidden[38].any()


def test_a_checkpoint_of_other_scales_or_codes_is_refused(checkpoints):
    tensors, _, folder = checkpoints
    read = functools.partial(weights.load_var, folder / "v.safetensors", folder / "vae.safetensors")
    save_file(tensors | levels((1, 2, 3, 5)), folder / "v.safetensors")
    with pytest.raises(ValueError, match=r"was trained with scales=\(1, 2, 3, 5\), got scales=\(1, 2, 4\); leave"):
        read(scales=(1, 2, 4))
    save_file(tensors, folder / "v.safetensors")
    with pytest.raises(ValueError, match="lvl_1L is missing; give scales"):
        read()
    with pytest.raises(ValueError, match=r"39 places in 4 scales, but scales=\(1, 2, 4\) are 21 in 3"):
        read(scales=(1, 2, 4))
    save_file(tensors | {"head.weight": np.zeros((12, 8), np.float32)}, folder / "v.safetensors")
    with pytest.raises(ValueError, match="12 codes of 3 numbers, but the tokenizer has 11 of 3"):
        read(scales=(1, 2, 3, 5))
    with pytest.raises(ValueError, match="is no FoundationVision/VAR's transformer: pos_1LC is missing"):
        weights.load_var(folder / "vae.safetensors", folder / "vae.safetensors")


@pytest.mark.slow
def test_the_tokenizer_and_shared_modulation_are_read_as_named():
    """Against names that share no code with mmjax.weights."""
    flat = group(GOLDEN, "tokenizer/weights")
    loaded = var_weights.load_tokenizer(TOKENIZER, flat)["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded, variables_of("unit")["tokenizer"]["params"])
    saved = var_weights.save_tokenizer(TOKENIZER, {"params": loaded})
    for name, tensor in flat.items():
        np.testing.assert_array_equal(saved[name], tensor)
    found = var_weights.load(MODELS["shared"], group(GOLDEN, "shared/weights"))["params"]
    jax.tree.map(np.testing.assert_array_equal, found, variables_of("shared")["params"])
    for name, tensor in group(GOLDEN, "shared/weights").items():
        np.testing.assert_array_equal(var_weights.save(MODELS["shared"], {"params": found})[name], tensor)


OTHERS = [(var.var_d16, 310.28), (var.var_d20, 600.92), (var.var_d24, 1033.40), (var.var_d30, 2010.02)]
PUBLISHED = [(var.var_d36s, 2353.89), *(pytest.param(*x, marks=pytest.mark.slow) for x in OTHERS)]


@pytest.mark.parametrize(("make", "millions"), PUBLISHED)
def test_published_sizes(make, millions):
    shapes = var_weights.abstract(var.VAR(make()))
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 2) == millions
    mesh = AbstractMesh((2, 4, 2, 1), meshes.AXES, axis_types=(AxisType.Auto,) * 4)
    rules.shardings(mesh, rules.DEFAULT, shapes)  # each large array has a rule


def test_inputs_of_other_scales_are_refused(inputs):
    with pytest.raises(ValueError, match=r"inputs must be \[3, 38, 3\] for scales \(1, 2, 3, 5\), got \[3, 30, 3\]"):
        MODELS["unit"].apply(variables_of("unit"), LABEL, inputs[:, :30])
    with pytest.raises(ValueError, match="width=12, num_heads=5"):
        var.VARConfig(width=12, num_heads=5)
