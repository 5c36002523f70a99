"""Shikra on annotated pictures of a user's own: its sizes. tests/test_cli_data.py trains it."""

from pathlib import Path

import pytest

from mmjax.data import scene_text
from mmjax.train import overrides

FILE = Path("experiments") / "shikra_coco.py"
SIZES = ("tiny", "small", "small_scenes", "paper")


@pytest.mark.parametrize("size", SIZES)
def test_models_and_rows_agree(size):
    assert set(SIZES) == set(overrides.sizes(FILE))
    experiment = overrides.load_experiment(FILE, size, ["data.path=here", "data.kinds=('what', 'where')"])
    data, config = experiment.data, experiment.task.model.config
    assert (data.path, data.kinds) == ("here", ("what", "where"))
    assert data.image_tokens == config.tokens_per_image
    assert data.composer.size == config.vision.image_size
    assert config.image_token == scene_text.id_of(scene_text.IMAGE)
    assert config.language.length >= 1 + data.image_tokens + data.length


def test_what_has_learned_of_drawings_is_the_same_model():
    ours = overrides.load_experiment(FILE, "small_scenes")
    assert {source.run for source in ours.init_from} == {"shikra_scenes-small"}
    assert [source.take for source in ours.init_from] == [source.to for source in ours.init_from]
    assert ours.task.model == overrides.load_experiment(FILE.with_stem("shikra_scenes"), "small").task.model
    assert not overrides.load_experiment(FILE, "small").init_from
