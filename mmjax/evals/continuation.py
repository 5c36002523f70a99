"""What a language model writes after the beginning of a text."""

import dataclasses
from typing import Any

import jax
import numpy as np

from mmjax.data import docs
from mmjax.nn.outputs import Answer, Request
from mmjax.nn.sampling import Sampling, generate


@dataclasses.dataclass(frozen=True)
class Continuation:
    """An Experiment's `sample`, for a model that was trained on `data.docs`."""

    tokens: int = 64
    temperature: float = 0.7

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        if not request.texts:
            raise ValueError('there is nothing to continue; give the beginning of a text, such as "Return the"')
        core = docs.tokenizer()
        sampling = Sampling(temperature=self.temperature, stop_ids=(core.token_to_id(docs.END),))
        said = generate(
            model, variables, **data.tokenize(request.texts), max_new_tokens=self.tokens, sampling=sampling, rng=rng
        )
        ends = core.decode_batch(np.asarray(said.tokens).tolist())
        return Answer("\n\n".join(text + end for text, end in zip(request.texts, ends, strict=True)))
