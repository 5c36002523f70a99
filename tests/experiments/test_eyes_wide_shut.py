"""The study of what CLIP does not see, on tiny runs, and its arithmetic."""

import numpy as np
import pytest

from experiments import _eyes_wide_shut
from mmjax.data import emoji_details


@pytest.mark.train
def test_it_measures_tiny_runs(encoder_runs):
    found = _eyes_wide_shut.measure(encoder_runs, "tiny")
    partners = ("DINO", "DINOv2")
    rows = [f"{name}{what}" for name in ("CLIP", *partners) for what in ("", " embedding")]
    rows += [f"CLIP + {name}, {how}" for name in partners for how in ("additive", "interleaved")]
    assert list(found) == [*rows, *(f"CLIP-blind beside {name}" for name in partners)]
    names = {f"held_out/{question.__name__}_accuracy" for question in emoji_details.QUESTIONS}
    for row in rows:
        assert found[row].metrics.keys() == names | {f"{name}_chance" for name in names}
        assert all(0 <= value <= 1 for value in found[row].metrics.values())
    pairs = found["CLIP-blind beside DINO"]
    assert pairs.metrics["held_out/clip_blind_pairs_chance"] == pytest.approx(0.0005 * 1555 * 1554 / 2, abs=1)
    assert set(pairs.pictures) == {"CLIP-blind", "DINO-blind"}
    with pytest.raises(FileNotFoundError, match=r"clip_emoji-small is no run folder; .* --size small"):
        _eyes_wide_shut.measure(encoder_runs, "small")


def test_branches_are_scaled_by_the_training_artists_and_mixed():
    rng = np.random.default_rng(0)
    train, test = ({name: 5 * rng.normal(size=(9, 4)) + 3 for name in ("CLIP", "DINO")} for _ in range(2))
    one, other = _eyes_wide_shut.scaled(train, test)
    np.testing.assert_allclose(one["CLIP"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(one["DINO"].std(0), 1, rtol=1e-4)
    expected = (test["CLIP"] - train["CLIP"].mean(0)) / train["CLIP"].std(0)
    np.testing.assert_allclose(other["CLIP"], expected, rtol=1e-4)
    both = _eyes_wide_shut.mixed(other, "DINO")
    np.testing.assert_allclose(both["CLIP + DINO, additive"], (other["CLIP"] + other["DINO"]) / 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(both["CLIP + DINO, interleaved"][:, 4:], other["DINO"])
