"""Language models on the terminal, token by token: what `mmjax sample --weights FILE.gguf "a question"` does.

text -template, tokenizer-> ids -prefill, then one step a token-> ids -tokenizer-> text, as it comes
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from tokenizers.decoders import DecodeStream

from mmjax.nn import sampling
from mmjax.text import language

STEP = 64  # prompts are padded to a multiple of it, so that those of about one length share one program
MOST = 256  # tokens of an answer, where nobody says otherwise


def room(model: nn.Module, prompt: list[int], most: int | None) -> int:
    """How many tokens the answer may have."""
    length = getattr(model.config, "length", None)
    if most is not None:
        return most
    if length is None:  # a state of fixed size
        return MOST
    if len(prompt) >= length:
        raise ValueError(f"the prompt has {len(prompt)} tokens, but the model's context is {length}; shorten it")
    return min(MOST, length - len(prompt))


def tokens(
    model: nn.Module, variables: dict, prompt: list[int], most: int | None, how: sampling.Sampling, seed: int
) -> Iterator[int]:
    """The answer's ids, the one that ends it included."""
    empty = -len(prompt) % STEP
    input_ids = np.array([[0] * empty + prompt], np.int32)
    attention_mask = np.arange(input_ids.shape[1])[None] >= empty
    steps = sampling.stream(
        model, variables, input_ids, attention_mask, max_new_tokens=room(model, prompt, most), sampling=how,
        rng=jax.random.key(seed),
    )  # fmt: skip
    return (int(step[0]) for step in steps)


def texts(speech: language.Language, ids: Iterator[int]) -> Iterator[str]:
    """As they come; a character whose bytes are spread over several ids comes with the last of them."""
    decoder = DecodeStream(skip_special_tokens=True)
    for one in ids:
        text = decoder.step(speech.core, one)
        if text:
            yield text


class Clock:
    """Iterates, and knows how fast that went."""

    def __init__(self, items: Iterator[int]):
        self.items, self.times = items, []

    def __iter__(self) -> Iterator[int]:
        for item in self.items:
            self.times.append(time.perf_counter())
            yield item

    def __str__(self) -> str:
        """Speed from the second on: the first two wait for the compiler."""
        count = len(self.times)
        speed = f", {(count - 2) / (self.times[-1] - self.times[1]):.1f} a second" if count > 2 else ""
        return f"{count} tokens{speed}"


def answer(asked: Any, model: nn.Module, variables: dict, speech: language.Language, questions: tuple[str, ...]) -> int:
    """Prints the answers as they come, and to stderr how fast."""
    if not hasattr(model, "init_cache"):
        raise ValueError(f"the weights are those of a {type(model).__name__}, which does not go on with a text")
    sampling.check_vocabulary(speech.core.get_vocab_size(), model)
    variables = jax.device_put(variables)
    how = sampling.Sampling(
        asked.repetition_penalty, asked.temperature, asked.top_k, asked.top_p, asked.min_p, speech.stop_ids
    )
    for question in questions:
        prompt = speech.prompt(question, system=asked.system)
        ids = Clock(tokens(model, variables, prompt, asked.max_new_tokens, how, asked.seed))
        if speech.template is None:
            print(question, end="", flush=True)  # a base model goes on with it
        for text in texts(speech, iter(ids)):
            print(text, end="", flush=True)
        print(flush=True)
        print(f"[{len(prompt)} tokens read; {ids}]", file=sys.stderr)
    return 0
