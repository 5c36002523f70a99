"""What a policy answers, as rows that the losses can read.

B prompts, P their length (padded on the left), N the most tokens of an answer.

    prompts [B P] -generate-> tokens [B N] -rows-> input_ids, attention_mask, labels [B P+N]
"""

import jax
import jax.numpy as jnp

from mmjax.nn.sampling import Generated
from mmjax.objectives import sft


def rows(input_ids: jax.Array, attention_mask: jax.Array, answers: Generated) -> dict[str, jax.Array]:
    """Prompts int, bool [B P] with their answers; labels count the answers' tokens, the one that ends them included."""
    said = jnp.arange(answers.tokens.shape[1]) < answers.lengths[:, None]
    input_ids = jnp.concatenate([input_ids, answers.tokens], axis=1)
    spoken = jnp.concatenate([jnp.zeros_like(attention_mask), said], axis=1)
    mask = jnp.concatenate([attention_mask, said], axis=1)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": sft.labels_of(input_ids, spoken)}
