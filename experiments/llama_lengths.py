"""Can a decoder read further than it was trained to? One decoder, three kinds of positions, the same batches.

learned     a row of numbers for each position (GPT-2); those beyond the trained length are what they were at the start
sinusoidal  Vaswani et al. 2017, section 3.5, which hoped for it: "may allow the model to extrapolate"
rotary      Su et al. 2021 (LLaMA): relative, but no distance beyond the trained length was ever seen

Trained on 64 tokens, asked up to 512: perplexity by position, beside that of the same tokens when the window moves on
(mmjax.evals.lengths). Press et al. 2022, arXiv:2108.12409, figure 1, is this experiment at full size.

tiny    seconds: does everything once, learns nothing
small   about 10 minutes on 2 CPU cores (numbers: README)
paper   their sizes (section 2.2: 16 layers, width 1024, 512 tokens), on the text of `docs`: for `mmjax plan` and pods
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.data.docs import DocsData, tokenizer
from mmjax.evals.lengths import Lengths
from mmjax.models import gpt, transformer
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.embeddings import Embed, positions_of
from mmjax.nn.mlp import MLP, gelu_tanh
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Answer, Aux, LMOutput, Request
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import masks, rope
from mmjax.ops.cross_entropy import IGNORED, next_tokens, softmax_cross_entropy
from mmjax.parallel.mesh import MeshShape
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

KINDS = ("learned", "sinusoidal", "rotary")


class Decoder(nn.Module):
    """GPT-2's, with its positions handed in: `added` to the embeddings [B T W], or a rotation of queries and keys."""

    config: gpt.GPTConfig

    @nn.compact
    def __call__(self, input_ids: jax.Array, mask: masks.Mask, added: Any = 0.0, rotate: Any = None) -> LMOutput:
        c, dtype, normal = self.config, self.config.compute.dtype, nn.initializers.normal(0.02)
        residual = nn.initializers.normal(0.02 * (2 * c.depth) ** -0.5)
        attention = partial(Attention, c.num_heads, dtype, normal, residual)
        mlp = partial(MLP, c.hidden, gelu_tanh, dtype, normal, residual)
        norm = partial(LayerNorm, c.epsilon, dtype)
        embed = Embed(c.vocab_size, c.width, dtype, normal, name="embed")
        layers = Stack(partial(PreNormBlock, attention, mlp, norm), c.depth, c.compute, name="layers")
        x = norm(name="norm")(layers(embed(input_ids) + added, mask, rotate)[0])
        return LMOutput(x, embed.logits(x).astype(jnp.float32))


class Decoders(nn.Module):
    """One of each kind. config.length is the longest text that is asked for, not the longest that is learned from."""

    config: gpt.GPTConfig

    def setup(self):
        c = self.config
        self.learned, self.sinusoidal, self.rotary = Decoder(c), Decoder(c), Decoder(c)
        self.pos_embed = self.param("pos_embed", nn.initializers.normal(0.01), (c.length, c.width))

    def read(self, kind: str, input_ids: jax.Array, segments: jax.Array | None = None) -> LMOutput:
        """input_ids [B T], segments [B T] -> logits [B T V] and what they are made of, by the decoder of this kind."""
        c, dtype = self.config, self.config.compute.dtype
        positions, mask = positions_of(input_ids.shape, None, segments), masks.causal(segments=segments)
        if kind == "learned":
            return self.learned(input_ids, mask, added=self.pos_embed[positions].astype(dtype))
        if kind == "sinusoidal":  # as large as embeddings are at first, or words would drown in them
            table = 0.02 * jnp.asarray(transformer.interleaved(c.length, c.width), dtype)
            return self.sinusoidal(input_ids, mask, added=table[positions])
        return self.rotary(input_ids, mask, rotate=rope.rotation(positions, c.width // c.num_heads))

    def __call__(self, input_ids: jax.Array, segments: jax.Array | None = None) -> dict[str, LMOutput]:
        return {kind: self.read(kind, input_ids, segments) for kind in KINDS}


def loss(model: Decoders, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """The sum of three losses that share no parameter: each decoder learns as if it were alone."""
    labels = next_tokens(batch["input_ids"], batch["attention_mask"], batch["segments"])
    count = (labels != IGNORED).sum()
    outputs = model.apply(variables, batch["input_ids"], batch["segments"])
    losses = {kind: softmax_cross_entropy(out.logits, labels).sum() / count for kind, out in outputs.items()}
    return sum(losses.values()), Aux(losses, weight=count)


@dataclasses.dataclass(frozen=True)
class Judged:
    """`sample`: how well each kind expects a text that is handed in, as perplexity."""

    def __call__(self, model: Decoders, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        lines = []
        for text in request.texts:
            ids = jnp.asarray([tokenizer().encode(text).ids], jnp.int32)
            if not 2 <= ids.shape[1] <= model.config.length:
                raise ValueError(f"give texts of 2 to {model.config.length} tokens, got {ids.shape[1]}: {text!r}")
            found = {kind: out.logits for kind, out in model.apply(variables, ids).items()}
            found = {k: jnp.exp(softmax_cross_entropy(x[:, :-1], ids[:, 1:]).mean()) for k, x in found.items()}
            said = ", ".join(f"{kind} {value:.1f}" for kind, value in found.items())
            lines.append(f"{ids.shape[1]} tokens, perplexity: {said}")
        return Answer("\n".join(lines))


def experiment(size: str) -> Experiment:
    vocab_size = tokenizer().get_vocab_size()
    if size == "tiny":
        config = gpt.GPTConfig(vocab_size, length=32, width=16, depth=2, num_heads=2, hidden=32)
        ask = Lengths(KINDS, trained=8, longest=32, corpora=("python",), rows=64)
        data, every = DocsData(length=8, corpora=("emoji",)), {"save_every": 4, "eval_every": 8, "log_every": 1}
        return Experiment(
            Task(Decoders(config), loss), data, AdamW(1e-2), 8, 16, evals=(ask,), sample=Judged(), **every
        )  # fmt: skip
    if size == "small":
        config = gpt.GPTConfig(
            vocab_size, 512, width=96, depth=3, num_heads=4, hidden=384, compute=Compute(unroll=True)
        )
        adamw = AdamW(peak=3e-3, warmup=100, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
        every = {"save_every": 400, "eval_every": 400, "log_every": 20}
        return Experiment(
            Task(Decoders(config), loss), DocsData(length=64), adamw, steps=800, batch_size=64, evals=(Lengths(KINDS),),
            sample=Judged(), **every,
        )  # fmt: skip
    if size != "paper":
        raise KeyError(size)
    compute = Compute(jnp.bfloat16, remat="full")
    config = gpt.GPTConfig(vocab_size, 4096, width=1024, depth=16, num_heads=8, hidden=4096, compute=compute)
    adamw = AdamW(peak=3e-4, warmup=2_000, end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
    return Experiment(
        Task(Decoders(config), loss), DocsData(length=512), adamw, steps=100_000, batch_size=512,
        evals=(Lengths(KINDS, 512, 4096),), sample=Judged(), mesh=MeshShape(fsdp=16),
    )  # fmt: skip
