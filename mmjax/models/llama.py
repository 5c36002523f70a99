"""LLaMA: the decoder that open language models have settled on. GPT-2 with four parts changed, and no biases.

Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2:
    RMSNorm instead of LayerNorm       Zhang and Sennrich 2019, arXiv:1910.07467
    rotary instead of learned positions    Su et al. 2021, arXiv:2104.09864
    SwiGLU instead of an MLP           Shazeer 2020, arXiv:2002.05202
and, since Llama 2 (arXiv:2307.09288), key heads shared by groups of query heads: Ainslie et al. 2023, arXiv:2305.13245.

    input_ids [B T] -embed-> [B T W] -L blocks, norm-> last_hidden_state [B T W] -head-> logits [B T V]

B batch, T tokens, V vocabulary, W width, L layers, H query heads, K key heads, D width of a head. Heads turn in halves
(ops/rope.py), as Hugging Face keeps them. With a window it is Mistral: Jiang et al. 2023, arXiv:2310.06825.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.cache import KVCache
from mmjax.nn.embeddings import Embed, positions_of
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import GatedMLP
from mmjax.nn.norms import RMSNorm
from mmjax.nn.outputs import LMOutput
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import masks, rope

# Token embeddings [B T W] -> [B T W]: puts something in place of some of them, such as an image's patches.
Splice = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The defaults are LLaMA-7B's."""

    vocab_size: int = 32_000  # V
    length: int = 2048  # most tokens in a row that `generate` allows; rotary positions themselves have no end
    width: int = 4096  # W
    depth: int = 32  # L
    num_heads: int = 32  # H
    num_kv_heads: int = 32  # K
    head_dim: int = 128  # D
    hidden: int = 11_008  # of the MLP
    theta: float = 10_000.0  # of the rotary positions
    scaling: rope.Scaling = None
    epsilon: float = 1e-6  # of the norms
    window: int | None = None  # how many tokens one sees, itself included; None: all before it
    tied: bool = False  # whether the head is the table of embeddings
    use_bias: bool = False  # in the attention
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "LlamaConfig":
        return cls(64, 32, width=16, depth=2, num_heads=4, num_kv_heads=2, head_dim=4, hidden=24)


def llama_7b() -> LlamaConfig:  # Touvron et al. 2023, table 2
    return LlamaConfig()


def llama_13b() -> LlamaConfig:
    return LlamaConfig(width=5120, depth=40, num_heads=40, num_kv_heads=40, hidden=13_824)


def llama2_7b() -> LlamaConfig:  # Touvron et al. 2023b, table 1
    return LlamaConfig(length=4096, epsilon=1e-5)


def llama2_70b() -> LlamaConfig:
    return LlamaConfig(
        length=4096, width=8192, depth=80, num_heads=64, num_kv_heads=8, hidden=28_672, epsilon=1e-5
    )  # fmt: skip


def llama3_8b() -> LlamaConfig:  # Llama 3's model card and params.json
    return LlamaConfig(128_256, 8192, num_kv_heads=8, hidden=14_336, theta=500_000.0, epsilon=1e-5)


def tinyllama_1b() -> LlamaConfig:  # Zhang et al. 2024, arXiv:2401.02385, table 2
    return LlamaConfig(
        width=2048, depth=22, num_heads=32, num_kv_heads=4, head_dim=64, hidden=5632, epsilon=1e-5
    )  # fmt: skip


def _smollm2(width: int, depth: int, num_kv_heads: int, hidden: int, theta: float) -> LlamaConfig:
    """Allal et al. 2025, arXiv:2502.02737; sizes from the config.json of each."""
    return LlamaConfig(
        49_152, 8192, width, depth, num_heads=width // 64, num_kv_heads=num_kv_heads, head_dim=64, hidden=hidden,
        theta=theta, epsilon=1e-5, tied=True,
    )  # fmt: skip


def smollm2_135m() -> LlamaConfig:
    return _smollm2(576, 30, num_kv_heads=3, hidden=1536, theta=100_000.0)


def smollm2_360m() -> LlamaConfig:
    return _smollm2(960, 32, num_kv_heads=5, hidden=2560, theta=100_000.0)


def smollm2_1_7b() -> LlamaConfig:
    return _smollm2(2048, 24, num_kv_heads=32, hidden=8192, theta=130_000.0)


def small(vocab_size: int) -> LlamaConfig:
    """1.5 million parameters at 2,048 ids: learns something within minutes on a laptop."""
    compute = Compute(unroll=True)
    return LlamaConfig(
        vocab_size, length=256, width=160, depth=4, num_heads=4, num_kv_heads=2, head_dim=40, hidden=432, tied=True,
        compute=compute,
    )  # fmt: skip


def of_size(size: str, vocab_size: int) -> LlamaConfig:
    """What experiments train: tiny and small with their own `vocab_size`, and as paper the 7B of 2023 in bfloat16."""
    return {
        "tiny": dataclasses.replace(LlamaConfig.tiny(), vocab_size=vocab_size, length=256, tied=True),
        "small": small(vocab_size),
        "paper": dataclasses.replace(llama_7b(), compute=Compute(jnp.bfloat16, remat="full")),
    }[size]


class Llama(nn.Module):
    config: LlamaConfig

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        splice: Splice | None = None,
        collect: bool = False,
    ) -> LMOutput:
        """input_ids [B T] int; attention_mask [B T] bool, False at padding; positions [B T] int, counted where None;
        segments [B T] int, neighbours of one number are a text of their own; splice: see `Splice`."""
        if positions is None:
            positions = positions_of(input_ids.shape, attention_mask, segments)
        mask = masks.causal(attention_mask, segments, self.config.window)
        return self.decode(input_ids, positions, mask, splice=splice, collect=collect)[0]

    def extend(
        self, input_ids: jax.Array, cache: KVCache, attention_mask: jax.Array | None = None,
        *, splice: Splice | None = None,
    ) -> tuple[LMOutput, KVCache]:  # fmt: skip
        """Reads further tokens [B T] of the texts in the cache; padding may stand on either side of a row."""
        positions, mask, cache = cache.open(input_ids.shape, attention_mask, self.config.window)
        out, cache = self.decode(input_ids, positions, mask, cache, splice=splice)
        return out, cache.close()

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> KVCache:
        """Room for `length` tokens a row."""
        c = self.config
        return KVCache.empty(c.depth, batch_size, length, c.num_kv_heads, c.head_dim, c.compute.dtype)

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[W V] what the last hidden state is multiplied by."""
        return params["embed"]["embedding"].T if self.config.tied else params["head"]["kernel"]

    @nn.compact
    def decode(
        self, input_ids: jax.Array, positions: jax.Array, mask: masks.Mask | jax.Array, cache: KVCache | None = None,
        *, splice: Splice | None = None, collect: bool = False,
    ) -> tuple[LMOutput, KVCache | None]:  # fmt: skip
        """collect=True: what each block gave too, in place of a cache."""
        c, dtype, normal = self.config, self.config.compute.dtype, nn.initializers.normal(0.02)
        attention = partial(
            Attention, c.num_heads, dtype, normal, normal, c.num_kv_heads, c.head_dim, c.use_bias
        )  # fmt: skip
        mlp = partial(GatedMLP, c.hidden, jax.nn.silu, dtype, normal)
        norm = partial(RMSNorm, c.epsilon, dtype)

        embed = Embed(c.vocab_size, c.width, dtype, normal, name="embed")
        rotate = rope.rotation(positions, c.head_dim, c.theta, c.scaling)  # once for all layers
        layers = Stack(partial(PreNormBlock, attention, mlp, norm), c.depth, c.compute, name="layers")
        x = embed(input_ids)
        x = x if splice is None else splice(x)
        x, rest = layers(x, mask, rotate, cache=cache, collect=collect)
        hidden_states, cache = (rest, None) if collect else (None, rest)
        x = norm(name="norm")(x)
        logits = embed.logits(x) if c.tied else Linear(c.vocab_size, False, dtype, normal, name="head")(x)
        return LMOutput(x, logits.astype(jnp.float32), hidden_states), cache
