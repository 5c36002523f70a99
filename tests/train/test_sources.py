"""Where init_from finds its weights, and what it says where it doesn't."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides, sources, step
from mmjax.train.experiment import Source

WEIGHTS = {"params": {"vision": {"kernel": np.arange(6.0).reshape(2, 3)}, "scale": np.float32(2)}}


@pytest.fixture
def folder(tmp_path):
    """A folder as other libraries save it."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    return tmp_path / "hf"


def load_hf(folder):
    return object(), jax.tree.map(jnp.asarray, WEIGHTS)


def test_weights_of_other_libraries_are_read_by_what_is_handed_in(folder):
    mesh = MeshShape(data=4, fsdp=2).build()
    place = sources.placing(mesh, (("kernel", jax.sharding.PartitionSpec("fsdp", None)),))
    asked = (Source(str(folder), "params/vision", "tower/deep"), Source(str(folder), to="judge"))
    found = sources.load(asked, "small", load_hf=load_hf, place=place)
    np.testing.assert_array_equal(found["tower"]["deep"]["kernel"], WEIGHTS["params"]["vision"]["kernel"])
    assert found["judge"].keys() == {"params"}
    assert found["tower"]["deep"]["kernel"].sharding.spec == jax.sharding.PartitionSpec("fsdp", None)
    assert found["judge"]["params"]["scale"].sharding.device_set == set(jax.devices())


def test_a_file_is_read_too(tmp_path):
    file = tmp_path / "a.gguf"
    file.touch()
    found = sources.load((Source(str(file), "params/vision", "params/eyes"),), "small", load_hf=load_hf)
    np.testing.assert_array_equal(found["params"]["eyes"]["kernel"], WEIGHTS["params"]["vision"]["kernel"])


def test_nobody_to_read_them_is_an_error(folder):
    with pytest.raises(ValueError, match=r"nothing here can read them \(load_hf is None\)"):
        sources.load((Source(str(folder)),), "small")


def test_two_sources_for_one_place_are_an_error(folder):
    asked = (Source(str(folder)), Source(str(folder), "params/vision", "params/vision"))
    with pytest.raises(ValueError, match="two sources bring params/vision/kernel"):
        sources.load(asked, "small", load_hf=load_hf)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("clip_emoji", "mmjax train experiments/clip_emoji.py --size tiny"),
        ("some/folder", "some/folder, which is neither a run folder nor"),
        ("weights/a.gguf", "weights/a.gguf, which is .* nor a GGUF file; .* --set init_from.0.run=PATH"),
    ],
)
def test_what_is_missing_is_named(run, message, tmp_path):
    with pytest.raises(FileNotFoundError, match=message):
        sources.load((Source(run),), "tiny", runs=tmp_path)


def test_a_subtree_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="no 'text' on the path 'params/text'; there: scale, vision"):
        sources.load((Source(str(folder), "params/text"),), "small", load_hf=load_hf)


EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("stem", ["bert_names", "llama_reward", "llama_dpo", "llama_ppo"])
def test_a_plan_knows_the_shapes_of_its_sources_and_of_what_is_prepared(stem):
    experiment = overrides.load_experiment(EXPERIMENTS / f"{stem}.py", "tiny")
    loaded = sources.shapes(experiment.init_from, "tiny", EXPERIMENTS)
    assert {source.to.split("/")[0] for source in experiment.init_from} == set(loaded)
    traced = step.build(experiment, MeshShape().build(), loaded).trace()
    assert traced.jaxpr.out_avals


def test_a_batch_that_is_prepared_from_values_cannot_be_planned():
    experiment = overrides.load_experiment(EXPERIMENTS / "llama_grpo.py", "tiny")
    loaded = sources.shapes(experiment.init_from, "tiny", EXPERIMENTS)
    runner = step.build(experiment, MeshShape().build(jax.devices()[:1]), loaded)
    with pytest.raises(ValueError, match=r"Task.prepare \(Rollout\) reads values on the host"):
        runner.trace()


def test_nothing_to_load_is_nothing():
    assert sources.load((), "small") == {}
