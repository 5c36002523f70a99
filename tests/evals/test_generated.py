"""The eval of generators on toys: what is asked for, what is compared, what stands beside it; and the controls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import emoji, emoji_drawings
from mmjax.evals import controls, features, generated, generation, judges

COUNT = 19  # and half of the held-out artist's drawings below


@functools.cache
def tiny() -> tuple[judges.Judge, judges.Judge]:
    models = (
        judges.ClassJudge(judges.JudgeConfig.tiny(), tuple(emoji_drawings.counts().values())),
        judges.TwinJudge(judges.JudgeConfig.tiny()),
    )
    found, rng = [], np.random.default_rng(0)
    for one in models:
        shapes = jax.eval_shape(one.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
        variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
        found.append(judges.Judge(one, variables, "f" * 64))
    return tuple(found)


@pytest.fixture(scope="module", autouse=True)
def few_drawings():
    """Every 40th drawing of each split, so that nothing takes long."""
    patch = pytest.MonkeyPatch()
    every = {split: [x[::40] for x in emoji.pack().split(split)] for split in emoji.SPLITS}
    patch.setattr(emoji.Pack, "split", lambda self, name: every[name])
    patch.setattr(features, "BATCH_SIZE", COUNT)  # one size, one compilation
    caches = emoji_drawings.drawings, generated.reference, generated.real_numbers
    for one in caches:
        one.cache_clear()
    yield
    patch.undo()
    for one in caches:
        one.cache_clear()


@dataclasses.dataclass(frozen=True)
class Data:
    """Labels are artist and concept."""

    def label(self, labels):
        return {"artist": labels.artist, "concept": labels.concept}


def by_heart(model, variables, rng, label):
    """The drawings themselves, from a table by artist and concept."""
    row = variables["row"][label["artist"], label["concept"]]
    return jnp.where((row >= 0)[:, None, None, None], variables["images"][row], 0)


def by_chance(model, variables, rng, label):
    return jax.random.randint(rng, (len(label["concept"]), 32, 32, 3), 0, 256).astype(jnp.uint8)


def table(split):
    images, labels = emoji_drawings.drawings(split, 32)
    row = np.full((8, 1555), -1)
    row[labels.artist, labels.concept] = np.arange(len(images))
    return {"row": row, "images": images}


@pytest.mark.slow
def test_what_is_known_by_heart_scores_as_real_drawings_do_and_is_all_copies():
    one = generated.Generated(by_heart, "train", COUNT, judges=tiny, batch=7)
    result = one(None, table("train"), Data(), jax.random.key(0))
    found = {name.removeprefix("train/"): value for name, value in result.metrics.items()}
    itself = ("name", "copies", "nearest")  # a drawing is not its own copy, nor named by itself
    compared = [name for name in found if f"{name}_real" in found and not name.startswith(itself)]
    assert {"frechet_a", "kernel_b", "coverage_sd_a", "recall_b", "group_accuracy", "artist_accuracy"} <= set(compared)
    for name in compared:
        assert found[name] == pytest.approx(found[f"{name}_real"], rel=1e-3, abs=1e-6), name
    assert found["copies"] == 1
    assert found["nearest"] == 0
    others = generation.nearest(table("train")["images"], table("train")["images"], own=np.arange(191)).distance
    assert found["nearest_real"] == pytest.approx(np.median(others))
    assert found["copies_real"] == pytest.approx(0.05, abs=0.01)
    # Its own drawing is among those that make a concept, which is left out of what stands for real.
    assert found["name_R@10_a"] > found["name_R@10_a_real"]
    assert result.pictures["train generated"].dtype == np.uint8


def test_noise_is_no_copy_and_ways_of_drawing_have_names():
    one = generated.Generated(by_chance, "train", COUNT, name="cfg 2", judges=tiny, batch=19)
    metrics = one(None, {}, Data(), jax.random.key(0)).metrics
    assert metrics["cfg 2 train/copies"] == 0
    assert metrics["cfg 2 train/nearest"] > 0.3
    assert metrics["cfg 2 train/coverage_a"] < metrics["cfg 2 train/coverage_a_real"]
    assert metrics["cfg 2 train/frechet_b"] > metrics["cfg 2 train/frechet_b_real"]
    again = one(None, {}, Data(), jax.random.key(0)).metrics
    assert again == metrics
    assert one(None, {}, Data(), jax.random.key(1)).metrics != metrics


def test_parts_of_a_split_share_no_drawing_and_are_halves_of_a_small_one():
    asked = generated.reference("twemoji", 1_500, tiny)
    images, _ = emoji_drawings.drawings("twemoji", 32)
    assert len(asked.real) == len(asked.other[0]) == len(asked.other[1]) == len(images) // 2 == COUNT
    rest = np.array([n for n, one in enumerate(images) if not (one == asked.real).all((1, 2, 3)).any()])
    x = judges.look(asked.judges[1], images[rest])
    gaps = abs(asked.other[1][:, None] - x).max(2).min(1)
    assert gaps.max() < 1e-4  # the second part is of what the first left
    assert not asked.own
    assert "artist_accuracy" not in generated.measure(asked.real, asked)  # an artist whom A does not know


def test_numbers_are_those_of_the_parts():
    against = generated.reference("train", COUNT, tiny)
    made = against.real[::-1]
    found = generated.measure(made, against)
    x = judges.look(against.judges[1], made)
    assert found["frechet_b"] == pytest.approx(generation.frechet_of(x, against.other[1]))
    assert found["recall_b"] == generation.neighbours(against.other[1], x).recall
    answers = judges.opinions(against.judges[0], made).subgroup.argmax(1)
    assert found["subgroup_accuracy"] == np.mean(answers == against.asked.subgroup)
    with pytest.raises(ValueError, match=r"uint8 \[19, 32, 32, 3\], one for each label .* got float64"):
        generated.measure(made / 255, against)
    assert generated.Generated(by_heart, judges=tiny).judge() == "f" * 12 + " " + "f" * 12


# --- controls


def labels(subgroups):
    return emoji_drawings.Labels(*[np.array(subgroups, np.int32)] * 4)


def test_controls_do_what_they_say():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    of = labels([3, 1, 3, 1, 3, 2])
    point = np.zeros((1, 5, 5, 3), np.uint8)
    point[0, 2, 2] = 160
    soft = controls.blurred(1)(point, of, rng)[0, :, :, 0]
    np.testing.assert_array_equal(soft[1:4, 1:4], [[10, 20, 10], [20, 40, 20], [10, 20, 10]])
    white = np.full((1, 5, 5, 3), 255, np.uint8)
    np.testing.assert_array_equal(controls.blurred(8)(white, of, rng), white)
    grey = np.full((4, 32, 32, 3), 128, np.uint8)
    assert (controls.noisy(0.1)(grey, of, rng) / 255.0).std() == pytest.approx(0.1, rel=0.05)
    mixed = controls.patches(images, of, rng)
    assert sorted(mixed[:, :8, 8:].reshape(6, -1).tolist()) == sorted(images[:, :8, 8:].reshape(6, -1).tolist())
    assert not (mixed == images).all((1, 2, 3)).all()
    np.testing.assert_array_equal(controls.means(images, of, rng)[4], images[[0, 2, 4]].mean(0).round())
    np.testing.assert_array_equal(controls.few(images, of, rng), images[[0, 1, 0, 1, 0, 5]])
    assert sorted(controls.shuffled(images, of, rng).reshape(6, -1).tolist()) == sorted(images.reshape(6, -1).tolist())
    assert controls.noise(images, of, rng).std() == pytest.approx(256 / 12**0.5, rel=0.1)
