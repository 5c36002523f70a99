"""Ferret's checkpoints, both ways; the sampler's tensors are those of its authors' class (tests/goldens/ferret.npz)."""

import dataclasses
from pathlib import Path

import clip_names
import ferret_names
import jax
import numpy as np
import pytest

from mmjax.models import ferret, llama, llava, vit
from mmjax.weights import ferret as weights

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "ferret.npz")
RNG = np.random.default_rng(0)
CONFIG = ferret.FerretConfig(
    llava.LlavaConfig(
        vit.ViTConfig(16, 8, width=8, depth=2, num_heads=2, hidden=12, epsilon=1e-5),
        llama.LlamaConfig(40, 32, width=12, depth=2, num_heads=2, num_kv_heads=2, head_dim=6, hidden=20),
        image_token=3,
        projector=llava.linear,
    ),
    region_token=39,
    sampler=ferret.SamplerConfig(32, (16, 4), (6, 4), transposed=True),
)
MODEL = ferret.Ferret(CONFIG)


def drawn(model: ferret.Ferret) -> dict:
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), weights.abstract(model))


@pytest.fixture(scope="module")
def tensors() -> dict:
    """A merged checkpoint: the sampler as the authors' class names and shapes it, the rest drawn."""
    sampler = clip_names.group(GOLDEN, "max/weights")
    assert len(sampler) == 16
    rest = {name: x for name, x in weights.save(MODEL, drawn(MODEL)).items() if weights.SAMPLER not in name}
    return rest | {f"model.region_geo_sampler.{name}": x for name, x in sampler.items()}


def test_a_merged_checkpoint_comes_in_and_goes_out_bit_by_bit(tensors):
    vision = drawn(MODEL)["params"]["vision"]
    variables = weights.load(MODEL, {**tensors, "model.vision_tower.x": np.ones(1)}, vision)
    wanted = ferret_names.sampler(clip_names.group(GOLDEN, "max/weights"))
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["regions"], wanted)
    kernel = variables["params"]["projector"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["model.mm_projector.weight"].T)
    assert variables["params"]["vision"] is vision
    saved = weights.save(MODEL, variables)
    assert saved.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(saved[name], x, err_msg=name)


def test_the_mean_has_an_adapter_instead():
    model = ferret.Ferret(dataclasses.replace(CONFIG, regions=ferret.plain))
    variables = drawn(model)
    saved = weights.save(model, variables)
    names = {name for name in saved if "region" in name}
    assert names == {"model.region_fea_adapter.weight", "model.region_fea_adapter.bias"}
    found = weights.load(model, saved, variables["params"]["vision"])
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    with pytest.raises(ValueError, match="missing model.region_geo_sampler"):
        weights.load(MODEL, saved, {})


def test_the_published_difference_is_added_to_vicuna(tensors):
    base = {name: x for name, x in tensors.items() if "region" not in name and "mm_projector" not in name}
    base = {name: x[:39] if x.shape[0] == 40 else x for name, x in base.items()}  # without the row of <region_fea>
    delta = {
        name: x - np.pad(base[name], [(0, len(x) - len(base[name]))] + [(0, 0)] * (x.ndim - 1)) if name in base else x
        for name, x in tensors.items()
    }
    found = weights.applied(base, delta)
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_allclose(found[name], x, atol=1e-6, err_msg=name)
