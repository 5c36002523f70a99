"""Judges: shapes, losses, names by prototypes, and weights there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import emoji, emoji_drawings
from mmjax.evals import features, judges
from mmjax.nn.outputs import Request

COUNTS = tuple(emoji_drawings.counts().values())
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), np.uint8)


def random_judge(model, seed):
    """Biases and scales are random too; nothing is compiled."""
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1]), np.random.default_rng(seed)
    return judges.Judge(model, jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes))


@pytest.fixture(scope="module")
def class_judge():
    return random_judge(judges.ClassJudge(judges.JudgeConfig.tiny(), COUNTS), 1)


@pytest.fixture(scope="module")
def twin_judge():
    return random_judge(judges.TwinJudge(judges.JudgeConfig.tiny()), 2)


def test_judges_are_small():
    for model in (judges.ClassJudge(judges.JudgeConfig(), COUNTS), judges.TwinJudge(judges.JudgeConfig())):
        shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])["params"]
        assert sum(x.size for x in jax.tree.leaves(shapes)) <= 500_000
    with pytest.raises(ValueError, match=r"looks at pictures \[B 32 32 3\], got \[1, 64, 64, 3\]"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.uint8))


def test_features_have_one_length_and_opinions_are_the_models(class_judge):
    said = judges.opinions(class_judge, IMAGES)
    whole = jax.jit(class_judge.model.apply)(class_judge.variables, IMAGES)
    for ours, theirs in zip(jax.tree.leaves(said), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [x.shape[1] for x in jax.tree.leaves(said)] == [8, *COUNTS]
    np.testing.assert_allclose((said.features**2).mean(1), 1, rtol=1e-3)
    np.testing.assert_allclose(judges.look(class_judge, IMAGES), said.features, rtol=1e-4, atol=1e-5)
    assert abs(said.concept).max() <= class_judge.model.scale
    others = np.concatenate([IMAGES[2:3], IMAGES[:5] // 2])  # no batch norm
    alone = judges.look(class_judge, others)
    np.testing.assert_allclose(alone[0], said.features[2], rtol=1e-4, atol=1e-5)


def test_class_loss_is_the_sum_of_four_cross_entropies(class_judge):
    labels = {name: RNG.integers(0, n, 6).astype(np.int32) for name, n in emoji_drawings.counts().items()}
    batch, found = {"images": IMAGES, **labels}, {}

    def loss(variables):
        total, aux = judges.class_loss(class_judge.model, variables, batch, jax.random.key(0), jnp.zeros((), int))
        found.update(aux.metrics)
        return total

    total = jax.jit(loss)(class_judge.variables)
    said, wanted = judges.opinions(class_judge, IMAGES), 0.0
    for name, right in labels.items():
        logits = getattr(said, name).astype(np.float64)
        probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        wanted -= np.log(probability[np.arange(6), right]).mean()
    assert float(total) == pytest.approx(wanted, rel=1e-4)
    assert set(found) >= {"loss", "group", "concept_right"}


def test_twin_loss_tells_each_twin_among_all_others(twin_judge):
    twins, concepts = RNG.integers(0, 256, (6, 2, 32, 32, 3), np.uint8), np.arange(6, dtype=np.int32)
    batch = {"images": twins, "concept": concepts}
    loss = jax.jit(
        lambda v, batch: judges.twin_loss(twin_judge.model, v, batch, jax.random.key(0), jnp.zeros((), int))[0]
    )
    total = loss(twin_judge.variables, batch)
    x, y = (features.unit(judges.look(twin_judge, twins[:, v])).astype(np.float64) for v in (0, 1))
    logits = 10 * x @ y.T
    rows, columns = (np.exp(logits) / np.exp(logits).sum(axis, keepdims=True) for axis in (1, 0))
    wanted = -(np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean()) / 2
    assert float(total) == pytest.approx(wanted, rel=1e-4)


def test_names_by_prototypes_are_those_of_a_loop_and_a_drawing_does_not_name_itself():
    x, concepts = RNG.normal(size=(30, 4)), np.concatenate([np.arange(8), RNG.integers(0, 7, 22)])  # of 7 there is one
    total = judges.prototypes(x, concepts, 10)
    unit = x / np.sqrt((x**2).sum(1, keepdims=True))
    for leave_out in (False, True):
        found = judges.named(x, concepts, total, own=x if leave_out else None)
        for n in range(30):
            scores = {}
            for c in range(10):
                members = [unit[m] for m in range(30) if concepts[m] == c and not (leave_out and m == n)]
                if members:
                    scores[c] = unit[n] @ np.sum(members, 0) / np.linalg.norm(np.sum(members, 0))
            mine = scores.get(concepts[n])
            if mine is None:
                assert found[n] == 8  # the last of those that there are
            else:
                assert found[n] == 1 + sum(s > mine for s in scores.values())


@pytest.fixture
def few_drawings(monkeypatch):
    """Every 40th drawing of each split, as large as asked for."""
    every = {split: [x[::40] for x in emoji.pack().split(split)] for split in emoji.SPLITS}
    monkeypatch.setattr(emoji.Pack, "split", lambda self, name: every[name])
    monkeypatch.setattr(features, "BATCH_SIZE", len(IMAGES))  # one size, one compilation
    emoji_drawings.drawings.cache_clear()
    yield
    emoji_drawings.drawings.cache_clear()


@pytest.mark.slow
def test_evals_and_answers_of_a_judge(class_judge, twin_judge, few_drawings):
    data, key = emoji_drawings.Labeled(), jax.random.key(0)
    metrics = judges.Opinions("validation")(*class_judge[:2], data, key).metrics
    images, labels = data.drawings("validation")
    right = (judges.opinions(class_judge, images).artist.argmax(1) == labels.artist).mean()
    assert metrics["validation/artist_accuracy"] == pytest.approx(right)
    assert metrics["validation/concept_accuracy_chance"] == 1 / 1555
    assert "twemoji/artist_accuracy" not in judges.Opinions("twemoji")(*class_judge[:2], data, key).metrics
    assert "concepts/concept_accuracy" not in judges.Opinions("concepts")(*class_judge[:2], data, key).metrics
    named = judges.Names("validation")(*twin_judge[:2], data, key).metrics
    assert 0 <= named["validation/name_R@1"] <= named["validation/name_R@10"] <= 1
    asked = Request(images=(np.zeros((20, 40, 3), np.uint8), images[0]))
    told = judges.Tell()(*class_judge[:2], asked, data, key).text.split("\n")
    assert len(told) == 2 * (1 + 5 + 1)
    assert len(judges.Tell()(*twin_judge[:2], asked, data, key).text.split("\n")) == 2 * (1 + 5)
    with pytest.raises(ValueError, match="give images"):
        judges.Tell()(*twin_judge[:2], Request(), data, key)


def test_weights_there_and_back(tmp_path, class_judge, few_drawings):
    path = tmp_path / "assets" / "judge.safetensors"
    with pytest.raises(FileNotFoundError, match="no judge in"):
        judges.load(path, class_judge.model)
    sha256 = judges.save(path, class_judge.model, class_judge.variables["params"])
    again = judges.load(path, class_judge.model)
    assert again.sha256 == sha256
    assert len(sha256) == 64
    there = judges.known_concepts(again, emoji_drawings.Labeled())
    np.testing.assert_allclose(again.concepts, there, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(again.variables), jax.tree.leaves(class_judge.variables), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match="another shape"):
        judges.load(path, judges.TwinJudge(judges.JudgeConfig.tiny()))
