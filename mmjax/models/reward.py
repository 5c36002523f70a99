"""Value heads: a number at every token of a language model.

Sources: Ziegler et al. 2019, arXiv:1909.08593, section 2; Ouyang et al. 2022, arXiv:2203.02155, section 3.5.
B rows, T tokens, D width. At an answer's last token the number is a reward model's score; before, it is what a critic
expects the score to become.

    input_ids [B T] -language model-> hidden [B T D] -score-> values [B T] -last token-> scores [B]

As in Transformers' `LlamaForSequenceClassification` the head is one kernel without bias. Here it starts at zero, so
that a critic begins by expecting nothing (lm-human-preferences does the same).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.nn.linear import Linear
from mmjax.nn.outputs import LMOutput


@struct.dataclass
class RewardOutput:
    values: jax.Array  # [B T] float32
    scores: jax.Array  # [B] the value at each row's last token


def last_token(values: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
    """[B T], bool [B T] -> [B]: at the rightmost token that is not padding, whichever side the padding is on.

    By mask and not by id: a model whose padding is its end token would otherwise be read before the end.
    """
    if attention_mask is None:
        return values[:, -1]
    last = jnp.argmax(jnp.arange(values.shape[1]) * attention_mask, axis=-1)
    return jnp.take_along_axis(values, last[:, None], -1)[:, 0]


class RewardModel(nn.Module):
    """Any causal language model of this package, and one number for each token."""

    language_model: nn.Module

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> RewardOutput:
        """int [B T], bool [B T], int [B T], int [B T]: as the language model takes them."""
        hidden = self.language_model(input_ids, attention_mask, positions, segments).last_hidden_state
        head = Linear(1, use_bias=False, kernel_init=nn.initializers.zeros, name="score")
        values = head(hidden.astype(jnp.float32))[..., 0]
        return RewardOutput(values, last_token(values, attention_mask))


class ActorCritic(nn.Module):
    """A policy and its critic, which train together; losses call them one at a time."""

    policy: nn.Module
    critic: RewardModel

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> tuple[LMOutput, RewardOutput]:
        return self.policy(input_ids, attention_mask), self.critic(input_ids, attention_mask)
