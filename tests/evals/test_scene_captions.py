"""Retrieval of captions in two steps, by a model that is a table."""

import jax
import jax.numpy as jnp
import lookup_toys
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data import pipeline
from mmjax.data.scene_captions import SceneCaptions
from mmjax.evals import scene_captions
from mmjax.nn.outputs import Request

NAMES = ("fox", "fox and key", "key")


class Table(nn.Module):
    """Picture i is said by its first pixel, caption t by its first token."""

    def encode_image(self, images):  # [B 1 1 3] -> [B 2 3], of which the first query knows nothing
        known = self.get_variable("params", "image")[images[:, 0, 0, 1].astype(jnp.int32)]
        return jnp.stack([-known, known], axis=1)

    def see(self, images):
        return images

    def answers(self, states):
        return self.encode_image(states)

    def encode_text(self, input_ids, attention_mask):
        return jnp.eye(3)[input_ids[:, 0]]

    def match(self, states, input_ids, attention_mask):
        table = self.get_variable("params", "match")
        logit = table[states[:, 0, 0, 1].astype(jnp.int32), input_ids[:, 0]]
        return jnp.stack([0 * logit, logit], -1)


class Four:
    """Four pictures of three captions."""

    tokenize = staticmethod(lookup_toys.Data(NAMES, {}).tokenize)

    def pairs(self, split, count):
        labels = np.array([0, 1, 2, 2], np.int32)
        images = lookup_toys.pictures(range(4))
        return pipeline.Pairs(images, [NAMES[n] for n in labels], labels, NAMES)


def test_the_match_corrects_what_cosines_mistake():
    # Pictures 0 and 2 are right, 1 takes "fox" for its caption, 3 puts its own last.
    image = np.array([[9, 5, 1], [9, 8, 1], [1, 2, 9], [7, 9, 6]], np.float32)
    match = np.where(np.eye(3, dtype=bool)[[0, 1, 2, 2]], 5, -5).astype(np.float32)
    variables = {"params": {"image": jnp.array(image), "match": jnp.array(match)}}
    evaluate = scene_captions.CaptionRetrieval("twemoji", looked=2)
    result = evaluate(Table(), variables, Four(), jax.random.key(0))
    found = {name.removeprefix("twemoji/"): value for name, value in result.metrics.items()}
    assert (found["pictures"], found["captions"]) == (4, 3)
    assert found["caption_R@1"] == 0.5
    assert found["itm_caption_R@1"] == 0.75  # of picture 3 the right one was not looked at
    assert found["caption_R@1_chance"] == found["itm_caption_R@1_chance"] == pytest.approx(1 / 3)
    assert found["picture_R@1"] == pytest.approx(2 / 3)  # "fox and key" finds picture 3
    assert found["itm_picture_R@1"] == 1
    assert found["picture_R@1_chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert result.pictures["twemoji captions"].dtype == np.uint8


def test_a_question_is_no_request_for_a_caption():
    with pytest.raises(ValueError, match="answers no questions"):
        scene_captions.Describe("twemoji")(
            None, {}, Request(("where is the fox?",)), SceneCaptions(), jax.random.key(0)
        )
