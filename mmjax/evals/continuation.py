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


@dataclasses.dataclass(frozen=True)
class Keywords:
    """An Experiment's `sample`, for a model that was trained on `emoji_text.Sentences`: keywords that follow a name."""

    temperature: float = 0.7

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        if not request.texts:
            raise ValueError('there is nothing to continue; give a name, such as "fox"')
        words, names = data.tokenizer, [f"{text.removesuffix(':')}:" for text in request.texts]
        rows = [[words.cls, *ids] for ids in words.encode(names)]
        prompts = docs.left_padded(rows, data.length - 1)
        width = max(map(len, rows))
        prompts = {name: x[:, -width:] for name, x in prompts.items()}  # room for what is said
        sampling = Sampling(temperature=self.temperature, stop_ids=(words.sep,))
        said = generate(model, variables, **prompts, max_new_tokens=data.length - width, sampling=sampling, rng=rng)
        tokens = [row[:count] for row, count in zip(np.asarray(said.tokens), np.asarray(said.lengths), strict=True)]
        return Answer("\n".join(f"{name} {words.decode(row)}" for name, row in zip(names, tokens, strict=True)))
