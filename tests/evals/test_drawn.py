"""What a person's words ask of a generator, and what drawings cost it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import emoji
from mmjax.data.emoji_pictures import NAME, SUBJECT, EmojiPictures
from mmjax.evals.drawn import Ask, HeldOut, asked
from mmjax.nn.outputs import Aux, Request


def test_words_become_labels():
    pack = emoji.pack()
    fox, noto = pack.names.index("fox"), emoji.TRAINING_ARTISTS.index("noto")
    np.testing.assert_array_equal(asked("fox by noto", NAME), [fox, noto])
    np.testing.assert_array_equal(asked("fox", NAME), [fox, -1])
    np.testing.assert_array_equal(asked("by noto", NAME), [-1, noto])
    np.testing.assert_array_equal(asked("", NAME), [-1, -1])
    mammals, animals = pack.subgroups.index("animal-mammal"), pack.groups.index("Animals & Nature")
    np.testing.assert_array_equal(asked("animal-mammal by noto", SUBJECT), [mammals, animals, noto])
    np.testing.assert_array_equal(asked("fox", SUBJECT), [mammals, animals, -1])
    np.testing.assert_array_equal(asked("Animals & Nature", SUBJECT), [-1, animals, -1])


@pytest.mark.parametrize(("text", "near"), [("foxx", "fox"), ("fox by picasso", "noto"), ("fox by twemoji", "artist")])
def test_what_nobody_knows_is_named_with_what_is_near(text, near):
    with pytest.raises(ValueError, match=near):
        asked(text, NAME)


def test_each_text_is_a_row_of_pictures():
    def draw(model, variables, rng, label):
        return jnp.broadcast_to(label[:, :1, None, None], (len(label), 32, 32, 3)).astype(jnp.uint8)

    answer = Ask(draw, count=3)(None, {}, Request(("fox", "by noto")), EmojiPictures(NAME), jax.random.key(0))
    assert answer.text == "row 1: fox\nrow 2: by noto"
    assert answer.pictures["drawn"].shape[0] > 2 * 64


def test_drawings_cost_what_the_loss_says():
    def loss(model, variables, batch, rng, step):
        value = jnp.mean(batch["label"][:, 0].astype(jnp.float32))
        return value, Aux({"loss": value, "pixel": batch["images"].astype(jnp.float32).mean()})

    data = EmojiPictures(NAME)
    images, labels = data.drawings("validation")
    found = HeldOut(loss, "validation", count=len(images), batch=len(images))(None, {}, data, None).metrics
    np.testing.assert_allclose(found["validation/loss"], labels.concept.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["validation/pixel"], images.mean(), rtol=1e-5)
    few = HeldOut(loss, "validation", count=10, batch=5)(None, {}, data, None).metrics
    assert set(few) == set(found)
