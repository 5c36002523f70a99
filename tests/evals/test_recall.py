"""The eval of recall counts right, for models whose answers are known."""

import types

import jax.numpy as jnp
import pytest

from mmjax.data.recall import InductionHeads, SelectiveCopying
from mmjax.evals.recall import Recall, Recalling
from mmjax.nn.outputs import Request

COPYING = SelectiveCopying(length=12, vocab_size=6, count=3)
HEADS = InductionHeads(length=12, vocab_size=6)


class Oracle:
    """Answers by the rule, wrongly in the last place for rows whose first id is even."""

    def __init__(self, data, wrong=False):
        self.data, self.wrong = data, wrong

    def apply(self, variables, input_ids):
        said = jnp.zeros(input_ids.shape, int)
        if isinstance(self.data, SelectiveCopying):
            count = self.data.count
            body = input_ids[:, :-count]
            order = jnp.argsort(body == 0, axis=1, stable=True)[:, :count]
            said = said.at[:, -count:].set(jnp.take_along_axis(body, order, axis=1))
        else:
            first = jnp.argmax(input_ids == self.data.vocab_size - 1, axis=1)
            said = said.at[:, -1].set(jnp.take_along_axis(input_ids, first[:, None] + 1, axis=1)[:, 0])
        if self.wrong:
            said = said.at[:, -1].set(jnp.where(input_ids[:, 0] % 2 == 0, 0 * said[:, -1] - 1, said[:, -1]))
        return types.SimpleNamespace(logits=jnp.eye(self.data.vocab_size)[said] * (said >= 0)[..., None])


@pytest.mark.parametrize("data", [COPYING, HEADS], ids=["copying", "heads"])
def test_a_model_that_knows_the_rule_is_right_at_every_length(data):
    metrics = Recall((12, 40), rows=20, tokens=100)(Oracle(data), {}, data, None).metrics
    assert metrics == {f"length_{n}/{name}": 1.0 for n in (12, 40) for name in ("accuracy", "all_right")}


def test_one_wrong_answer_of_three_counts_as_a_third_and_as_a_whole_text():
    metrics = Recall((12,), rows=60)(Oracle(COPYING, wrong=True), {}, COPYING, None).metrics
    share = (COPYING.questions(60, 12)["input_ids"][:, 0] % 2 == 0).mean()
    assert 0.2 < share < 0.95
    assert metrics["length_12/all_right"] == pytest.approx(1 - share)
    assert metrics["length_12/accuracy"] == pytest.approx(1 - share / 3)


def test_a_person_reads_the_answer_beside_the_text():
    ask = lambda data, text: Recalling()(Oracle(data), {}, Request((text,)), data, None).text  # noqa: E731
    assert ask(COPYING, "..c.a...d.") == "..c.a...d.??? cad"
    assert ask(HEADS, "aa>ce bea>") == "aa>cebea> c"
    with pytest.raises(ValueError, match="there is nothing to remember; give a text, such as"):
        Recalling()(Oracle(HEADS), {}, Request(), HEADS, None)
