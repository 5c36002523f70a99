"""What the live comparisons of causal language models share: weights at random, all that is compared, from a folder."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
from closeness import close, close_trees

from mmjax import weights
from mmjax.nn import sampling
from mmjax.objectives import pretrain


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if ("norm" in name or "ln_" in name) and name.endswith("weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)
    return model.eval()


def compare(theirs: torch.nn.Module, folder: Path, names, seed: int, length: int = 17) -> None:
    """Forward pass, loss, every gradient, decoding token by token with both caches, and what both write on."""
    theirs.save_pretrained(folder)
    model, variables = weights.load_hf(folder)
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, theirs.config.vocab_size, (3, length)).astype(np.int32)
    mask = np.arange(length) < np.array([[length], [length // 2], [1]])
    out = theirs(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)),
        labels=torch.tensor(np.where(mask, ids, -100)).long(), output_hidden_states=True,
    )  # fmt: skip
    out.loss.backward()
    batch = {"input_ids": ids, "attention_mask": mask}
    ours = jax.jit(model.apply)(variables, **batch)
    close("forward logits", ours.logits[mask], out.logits.detach().numpy()[mask], relative=1e-5)
    hidden = out.hidden_states[-1].detach().numpy()
    close("forward hidden", ours.last_hidden_state[mask], hidden[mask], relative=1e-5)
    loss = lambda v: pretrain.loss(model, v, batch, None, 0)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    close("loss", value, out.loss.item(), relative=1e-5)
    close_trees(gradients["params"], names({n: w.grad.numpy() for n, w in theirs.named_parameters()}), relative=1e-4)

    extend = jax.jit(partial(model.apply, method="extend"))
    cache, past, prompt = model.init_cache(3, length), None, length - 4
    with torch.no_grad():
        for part in (ids[:, :prompt], *np.split(ids[:, prompt:], 4, axis=1)):
            step = theirs(input_ids=torch.tensor(part), past_key_values=past, use_cache=True)
            past, (mine, cache) = step.past_key_values, extend(variables, part, cache)
            close("cached logits", mine.logits, step.logits.numpy(), relative=1e-5)

    left = {"input_ids": torch.tensor(ids[:, ::-1].copy()), "attention_mask": torch.tensor(mask[:, ::-1].astype(int))}
    for penalty in (1.0, 1.4):
        left["input_ids"][left["attention_mask"] == 0] = 0  # transformers counts padding as seen, and so never as next
        greedy = theirs.generate(
            **left, max_new_tokens=5, do_sample=False, pad_token_id=0, repetition_penalty=penalty, eos_token_id=None
        ).numpy()[:, length:]
        mine = sampling.generate(
            model, variables, ids[:, ::-1], mask[:, ::-1], max_new_tokens=5,
            sampling=sampling.Sampling(repetition_penalty=penalty),
        )  # fmt: skip
        np.testing.assert_array_equal(mine.tokens, greedy)
