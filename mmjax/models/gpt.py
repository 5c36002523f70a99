"""GPT-2: a Transformer's decoder that reads text from left to right and is asked, at each token, for the next.

Source: Radford et al. 2019 (Language Models are Unsupervised Multitask Learners), section 2.3; initial values from
openai/gpt-2's model.py, with the scaling of residual layers that only the paper has. GPT-1 (Radford et al. 2018,
section 4.1) is the same with the norms after the residual sums.

    input_ids [B T] -embed, + position-> [B T W] -L blocks, norm-> last_hidden_state [B T W] -embed^T-> logits [B T V]

B batch, T tokens, V vocabulary, W width, L layers. Deviates: no dropout. Positions count what `attention_mask` leaves
(transformers counts padding too, unless it is given position_ids).
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PostNormBlock, PreNormBlock
from mmjax.nn.cache import KVCache
from mmjax.nn.embeddings import Embed, positions_of
from mmjax.nn.mlp import MLP, gelu_tanh
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import LMOutput
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import masks


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The defaults are GPT-2's smallest."""

    vocab_size: int = 50_257  # V
    length: int = 1024  # most tokens in a row, T
    width: int = 768  # W
    depth: int = 12  # L
    num_heads: int = 12
    hidden: int = 3072  # of the MLP
    activation: Callable = gelu_tanh
    epsilon: float = 1e-5  # of the norms
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "GPTConfig":
        return cls(vocab_size=64, length=32, width=16, depth=2, num_heads=2, hidden=32)


def _published(depth: int, width: int) -> GPTConfig:
    """Radford et al. 2019, table 2; heads are 64 wide, MLPs 4 times as wide as the stream."""
    return GPTConfig(width=width, depth=depth, num_heads=width // 64, hidden=4 * width)


def gpt2() -> GPTConfig:
    return _published(12, 768)


def gpt2_medium() -> GPTConfig:
    return _published(24, 1024)


def gpt2_large() -> GPTConfig:
    return _published(36, 1280)


def gpt2_xl() -> GPTConfig:
    return _published(48, 1600)


def gpt1() -> GPTConfig:  # for the class GPT1; Radford et al. 2018, section 4.1
    return GPTConfig(vocab_size=40_478, length=512)


class GPT(nn.Module):
    config: GPTConfig

    block = PreNormBlock

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> LMOutput:
        """input_ids [B T] int; attention_mask [B T] bool, False at padding; positions [B T] int, counted where None;
        segments [B T] int, neighbours of one number are a text of their own."""
        if positions is None:
            positions = positions_of(input_ids.shape, attention_mask, segments)
        return self.decode(input_ids, positions, masks.causal(attention_mask, segments))[0]

    def extend(
        self, input_ids: jax.Array, cache: KVCache, attention_mask: jax.Array | None = None
    ) -> tuple[LMOutput, KVCache]:
        """Reads further tokens [B T] of the texts in the cache; padding may stand on either side of a row."""
        positions, mask, cache = cache.open(input_ids.shape, attention_mask)
        out, cache = self.decode(input_ids, positions, mask, cache)
        return out, cache.close()

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> KVCache:
        """Room for `length` tokens a row."""
        c = self.config
        return KVCache.empty(c.depth, batch_size, length, c.num_heads, c.width // c.num_heads, c.compute.dtype)

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[W V] what the last hidden state is multiplied by."""
        return params["embed"]["embedding"].T

    @nn.compact
    def decode(
        self, input_ids: jax.Array, positions: jax.Array, mask: masks.Mask | jax.Array, cache: KVCache | None = None
    ) -> tuple[LMOutput, KVCache | None]:
        c, dtype = self.config, self.config.compute.dtype
        if input_ids.shape[1] > c.length:
            raise ValueError(f"input_ids must hold at most {c.length} tokens a row, got {input_ids.shape[1]}")
        normal, residual = nn.initializers.normal(0.02), nn.initializers.normal(0.02 * (2 * c.depth) ** -0.5)
        attention = partial(Attention, c.num_heads, dtype, normal, residual)
        mlp = partial(MLP, c.hidden, c.activation, dtype, normal, residual)
        layer = partial(self.block, attention, mlp, partial(LayerNorm, c.epsilon, dtype))

        embed = Embed(c.vocab_size, c.width, dtype, normal, name="embed")
        pos_embed = self.param("pos_embed", nn.initializers.normal(0.01), (c.length, c.width))
        x = embed(input_ids) + jnp.take(pos_embed, positions, axis=0, mode="clip").astype(dtype)
        x, cache = Stack(layer, c.depth, c.compute, name="layers")(x, mask, cache=cache)
        x = self.last(x)
        return LMOutput(x, embed.logits(x).astype(jnp.float32)), cache

    def last(self, x: jax.Array) -> jax.Array:
        """The norm that a stack of pre-norm blocks needs."""
        return LayerNorm(self.config.epsilon, self.config.compute.dtype, name="norm")(x)


class GPT1(GPT):
    """Norms after the sums, so none is needed at the end."""

    block = PostNormBlock

    def last(self, x: jax.Array) -> jax.Array:
        return x
