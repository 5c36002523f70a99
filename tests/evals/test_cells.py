"""What patches are called: a model that knows, one that knows nothing, and which patch is asked."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data import scene_questions
from mmjax.data.scene_questions import SceneQuestions
from mmjax.evals import cells
from mmjax.nn.cells import Cells
from mmjax.nn.outputs import Request

DATA = SceneQuestions(kinds=(), places=1, length=16, image_tokens=0)


class Knows(nn.Module):
    """Looks pictures up among those of the split."""

    images: tuple
    told: tuple
    shift: float = 0.0

    def apply(self, variables, images):  # in place of Linen's
        wanted = jax.numpy.asarray(np.stack(self.images))
        same = (wanted[None] == images[:, None]).all((2, 3, 4)).argmax(1)
        logits, boxes = (jax.numpy.asarray(np.stack(x))[same] for x in zip(*self.told, strict=True))
        return Cells(logits, boxes + self.shift)


def oracle(examples, shift=0.0) -> Knows:
    known = scene_questions.names(DATA.vocabulary)
    told = []
    for example in examples:
        logits, boxes = np.zeros((64, len(known) + 1), np.float32), np.zeros((64, 4), np.float32)
        for thing, mask in zip(example.things, example.masks, strict=True):
            cell = cells.middle(mask, 8)
            logits[cell, known.index(thing.name)], boxes[cell] = 9, thing.box
        told.append((logits, boxes))
    return Knows(tuple(example.image for example in examples), tuple(told), shift)


@pytest.mark.parametrize(("shift", "box"), [(0.0, 1.0), (0.5, 0.0)])
def test_who_knows_is_right_about_names_and_boxes(shift, box, monkeypatch):
    examples = DATA.examples("twemoji", 20)
    monkeypatch.setattr(jax, "jit", lambda f: f)
    result = cells.CellNames("twemoji", 20)(oracle(examples, shift), {}, DATA, jax.random.key(0))
    assert result.metrics["twemoji/name"] == 1
    assert result.metrics["twemoji/box"] == box
    assert result.metrics["twemoji/things"] > 25


def test_the_patch_that_is_asked_shows_the_thing():
    mask = np.zeros((64, 64), bool)
    mask[16:24, 40:48] = True  # row 2, column 5
    assert cells.middle(mask, 8) == 2 * 8 + 5
    ring = np.zeros((64, 64), bool)
    ring[8:56, 8:56] = True
    ring[24:40, 24:40] = False  # its middle shows the ground
    assert ring.reshape(8, 8, 8, 8).mean((1, 3)).ravel()[cells.middle(ring, 8)] > 0.5


def test_it_knows_no_words():
    with pytest.raises(ValueError, match="knows no words"):
        cells.LookAtCells("twemoji")(None, {}, Request(("where?",)), DATA, jax.random.key(0))
