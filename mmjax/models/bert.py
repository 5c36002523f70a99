"""BERT: an encoder that reads both ways, trained to guess hidden words.

Source: Devlin et al. 2019, arXiv:1810.04805; what the paper leaves open (GELU's form, epsilon, initial values, how
words are hidden) from google-research/bert.

    input_ids [B T] -words + types + positions, norm-> [B T D] -L x (attention, MLP), norm after each-> [B T D]
        -mlm->  logits [B T V]      the word at each place, with the table of words as last layer
        -pooler, nsp->  [B 2]       from [CLS]: does sentence B follow A (class 0) or not (class 1)
        -head-> [B C] or [B T C]    after fine-tuning: a class per text, a tag per token

B batch, T tokens, D width, L layers, V vocabulary, M hidden words per row, C classes.
A row is [CLS] sentence A [SEP] sentence B [SEP] [PAD] ...; token_type_ids are 0 up to the first [SEP], then 1.

Differs from the original: no dropout on attention weights, which fused attention never holds.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PostNormBlock
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear, matmul
from mmjax.nn.mlp import MLP, gelu, gelu_tanh
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import masks
from mmjax.ops.cross_entropy import IGNORED, softmax_cross_entropy

INIT = nn.initializers.truncated_normal(0.02)  # of every kernel and table


@dataclasses.dataclass(frozen=True)
class BERTConfig:
    """Sizes; the defaults are BERT-base's."""

    vocab_size: int = 30522  # V
    length: int = 512  # most tokens in a row
    types: int = 2  # sentence A, sentence B
    width: int = 768  # D
    depth: int = 12  # L
    num_heads: int = 12
    hidden: int = 3072  # of the MLP
    activation: Callable = gelu_tanh  # Google's form; most files of transformers say the exact one
    epsilon: float = 1e-12  # of the norms
    dropout: float = 0.1  # of embeddings, of what attention and MLP add, and before a head
    compute: Compute = Compute()

    @classmethod
    def tiny(cls) -> "BERTConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        return cls(vocab_size=64, length=32, width=16, depth=2, num_heads=2, hidden=32, dropout=0.0)


def sized(depth: int, width: int, vocab_size: int = 30522) -> BERTConfig:
    """Heads are 64 wide and MLPs 4 times the width; smaller ones than base: Turc et al. 2019, arXiv:1908.08962."""
    return BERTConfig(vocab_size, width=width, depth=depth, num_heads=width // 64, hidden=4 * width)


def base() -> BERTConfig:  # section 3
    return sized(12, 768)


def large() -> BERTConfig:  # section 3
    return sized(24, 1024)


def minilm(depth: int = 6) -> BERTConfig:
    """all-MiniLM-L6-v2 and -L12: heads are 32 wide. Wang et al. 2020, arXiv:2002.10957."""
    return BERTConfig(width=384, depth=depth, num_heads=12, hidden=1536, activation=gelu)


def small(vocab_size: int, length: int) -> BERTConfig:
    """Not published: 0.9 M parameters in the layers, trained from scratch in minutes on a CPU."""
    return BERTConfig(vocab_size, length, width=128, depth=4, num_heads=4, hidden=512)


def of_size(size: str, vocab_size: int) -> BERTConfig:
    """What experiments train: tiny and small with their own `vocab_size`, and as paper BERT-large in bfloat16."""
    return {
        "tiny": dataclasses.replace(BERTConfig.tiny(), vocab_size=vocab_size),
        "small": dataclasses.replace(small(vocab_size, length=64), compute=Compute(unroll=True)),
        "paper": dataclasses.replace(large(), compute=Compute(jnp.bfloat16, remat="dots")),
    }[size]


@struct.dataclass
class BERTOutput:
    last_hidden_state: jax.Array  # [B T D]
    pooler_output: jax.Array | None  # [B D] from [CLS], where there is a pooler
    hidden_states: jax.Array | None  # [L B T D] after each block, where asked for with collect=True


@struct.dataclass
class HeadOutput:
    logits: jax.Array  # [B T V] words, or [B M V] at the places asked for; [B C] of texts; [B T C] of tokens
    last_hidden_state: jax.Array  # [B T D]
    nsp: jax.Array | None = None  # [B 2] of BERTForPreTraining: class 0 says that sentence B follows A


def mean_pool(x: jax.Array, mask: jax.Array) -> jax.Array:  # [B T D], [B T] bool -> [B D] over the tokens that count
    weight = mask.astype(x.dtype)[..., None]
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def at(x: jax.Array, places: jax.Array | None) -> jax.Array:  # [B T D], [B M] -> [B M D]; all places where None
    return x if places is None else jnp.take_along_axis(x, places[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class Masking:
    """How words are hidden: section 3.1, task 1."""

    mask_id: int
    vocab_size: int  # random words are drawn from all of it, as in the original
    never: tuple[int, ...]  # ids that are not hidden: [CLS] and [SEP]
    share: float = 0.15  # of a row's tokens, [CLS] and [SEP] counted
    replaced: float = 0.8  # of the hidden: become [MASK]
    random: float = 0.1  # become a random word; the rest stay as they are


def mask_tokens(rng: jax.Array, input_ids: jax.Array, attention_mask: jax.Array, masking: Masking) -> dict:
    """input_ids [B T], attention_mask [B T] bool -> what to predict, for `pretraining_loss` or `loss`:

    input_ids [B T] with words hidden, masked_positions [B M] and labels [B M], M = share of T; rows with fewer tokens
    use fewer of their M places, and their other labels are IGNORED. Every row with a word has at least one.
    """
    order_rng, fate_rng, word_rng = jax.random.split(rng, 3)
    most = max(1, round(masking.share * input_ids.shape[1]))  # M
    may_hide = attention_mask & ~jnp.isin(input_ids, jnp.array(masking.never))
    wanted = jnp.clip(jnp.round(masking.share * attention_mask.sum(-1)), 1, most)  # to even, as Python's round

    order = jnp.where(may_hide, jax.random.uniform(order_rng, input_ids.shape), -1.0)
    order, places = jax.lax.top_k(order, most)  # [B M]: the first of a random order
    chosen = (jnp.arange(most) < wanted[:, None]) & (order >= 0)
    words = jnp.take_along_axis(input_ids, places, axis=1)

    fate = jax.random.uniform(fate_rng, places.shape)
    anything = jax.random.randint(word_rng, places.shape, 0, masking.vocab_size, input_ids.dtype)
    shown = jnp.where(fate < masking.replaced + masking.random, anything, words)
    shown = jnp.where(fate < masking.replaced, masking.mask_id, shown)
    hidden = jnp.put_along_axis(input_ids, places, jnp.where(chosen, shown, words), axis=1, inplace=False)
    return {"input_ids": hidden, "masked_positions": places, "labels": jnp.where(chosen, words, IGNORED)}


class Dropped(nn.Module):
    """`part`, with dropout on what it gives; its parameters keep their paths."""

    part: Callable[[], nn.Module]
    rate: float

    def setup(self):
        self.inner = self.part()
        self.dropout = nn.Dropout(self.rate, deterministic=False)
        nn.share_scope(self, self.inner)

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        return self.dropout(self.inner(*inputs))


class BERT(nn.Module):
    """The encoder. `encode_text` makes a sentence encoder of it (Reimers and Gurevych 2019, arXiv:1908.10084)."""

    config: BERTConfig
    pooled: bool = True  # whether it has the pooler, which heads on tokens do without

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        *,
        train: bool = False,
        collect: bool = False,
    ) -> BERTOutput:
        """input_ids [B T] int; attention_mask [B T], true where a token counts; token_type_ids [B T] int, 0 if None."""
        c, dtype, length = self.config, self.config.compute.dtype, input_ids.shape[1]
        if length > c.length:
            raise ValueError(f"input_ids must hold at most {c.length} tokens a row, got {length}")
        types = self.param("type_embed", INIT, (c.types, c.width))
        positions = self.param("pos_embed", INIT, (c.length, c.width))[:length]
        x = Embed(c.vocab_size, c.width, dtype, INIT, name="embed")(input_ids)
        x = x + (types[0] if token_type_ids is None else types[token_type_ids]).astype(dtype) + positions.astype(dtype)
        x = LayerNorm(c.epsilon, dtype, name="norm")(x)

        attention = partial(Attention, c.num_heads, dtype=dtype, kernel_init=INIT, out_init=INIT)
        mlp = partial(MLP, c.hidden, c.activation, dtype, INIT, INIT)
        if train:
            x = nn.Dropout(c.dropout, deterministic=False)(x)
            attention, mlp = partial(Dropped, attention, c.dropout), partial(Dropped, mlp, c.dropout)
        layer = partial(PostNormBlock, attention, mlp, partial(LayerNorm, c.epsilon, dtype))
        mask = None if attention_mask is None else masks.Padding(attention_mask.astype(bool))
        x, hidden_states = Stack(layer, c.depth, c.compute, name="layers")(x, mask, collect=collect)

        first = Linear(c.width, dtype=dtype, kernel_init=INIT, name="pooler")(x[:, 0]) if self.pooled else None
        return BERTOutput(x, None if first is None else jnp.tanh(first), hidden_states)

    def encode_text(
        self, input_ids: jax.Array, attention_mask: jax.Array, token_type_ids: jax.Array | None = None
    ) -> jax.Array:
        """[B T], [B T] bool -> [B D] of length 1: the mean over a text's tokens."""
        states = self(input_ids, attention_mask, token_type_ids).last_hidden_state
        x = mean_pool(states.astype(jnp.float32), attention_mask)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class MLMHead(nn.Module):
    """Which word stands here: one more layer, then the similarity to each word of the table (section 3.1)."""

    config: BERTConfig

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:  # [B M D], [V D] -> [B M V]
        c, dtype = self.config, self.config.compute.dtype
        x = c.activation(Linear(c.width, dtype=dtype, kernel_init=INIT, name="transform")(x))
        x = LayerNorm(c.epsilon, dtype, name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
        return matmul(x, table.T.astype(dtype)) + bias.astype(dtype)


def table_of(encoder: BERT) -> jax.Array:  # [V D]
    return encoder.variables["params"]["embed"]["embedding"]


class BERTForPreTraining(nn.Module):
    """Both tasks of section 3.1: hidden words, and whether the second sentence follows the first."""

    config: BERTConfig

    def setup(self):
        self.bert, self.mlm = BERT(self.config), MLMHead(self.config)
        self.nsp = Linear(2, dtype=self.config.compute.dtype, kernel_init=INIT)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, token_type_ids: jax.Array | None = None,
        masked_positions: jax.Array | None = None, *, train: bool = False,
    ) -> HeadOutput:  # fmt: skip
        """As BERT's; masked_positions [B M]: where words are predicted, everywhere if None."""
        out = self.bert(input_ids, attention_mask, token_type_ids, train=train)
        logits = self.mlm(at(out.last_hidden_state, masked_positions), table_of(self.bert))
        return HeadOutput(logits, out.last_hidden_state, self.nsp(out.pooler_output))


class BERTForMaskedLM(nn.Module):
    """Hidden words only: to go on training on texts that come without order, or to fill in a blank."""

    config: BERTConfig

    def setup(self):
        self.bert, self.mlm = BERT(self.config, pooled=False), MLMHead(self.config)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, token_type_ids: jax.Array | None = None,
        masked_positions: jax.Array | None = None, *, train: bool = False,
    ) -> HeadOutput:  # fmt: skip
        out = self.bert(input_ids, attention_mask, token_type_ids, train=train)
        return HeadOutput(
            self.mlm(at(out.last_hidden_state, masked_positions), table_of(self.bert)), out.last_hidden_state
        )


class BERTForClassification(nn.Module):
    """A class for each text, read at [CLS]: figure 4 a and b."""

    config: BERTConfig
    labels: tuple[str, ...]  # names of the C classes

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, token_type_ids: jax.Array | None = None,
        *, train: bool = False,
    ) -> HeadOutput:  # fmt: skip
        out = BERT(self.config, name="bert")(input_ids, attention_mask, token_type_ids, train=train)
        x = nn.Dropout(self.config.dropout, deterministic=not train)(out.pooler_output)
        head = Linear(len(self.labels), dtype=self.config.compute.dtype, kernel_init=INIT, name="head")
        return HeadOutput(head(x), out.last_hidden_state)


class BERTForTagging(nn.Module):
    """A tag for each token: figure 4 d."""

    config: BERTConfig
    labels: tuple[str, ...]  # names of the C tags

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, token_type_ids: jax.Array | None = None,
        *, train: bool = False,
    ) -> HeadOutput:  # fmt: skip
        out = BERT(self.config, pooled=False, name="bert")(input_ids, attention_mask, token_type_ids, train=train)
        x = nn.Dropout(self.config.dropout, deterministic=not train)(out.last_hidden_state)
        head = Linear(len(self.labels), dtype=self.config.compute.dtype, kernel_init=INIT, name="head")
        return HeadOutput(head(x), out.last_hidden_state)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[... C], [...] int -> the mean over labels that are not IGNORED, and how many they are."""
    count = (labels != IGNORED).sum()
    return softmax_cross_entropy(logits, labels).sum() / jnp.maximum(count, 1), count


def _apply(model: nn.Module, variables: dict, batch: dict, rng: jax.Array) -> HeadOutput:
    names = ("input_ids", "attention_mask", "token_type_ids", "masked_positions")
    inputs = {name: batch[name] for name in names if name in batch}
    return model.apply(variables, **inputs, train=True, rngs={"dropout": rng})


def pretraining_loss(model: BERTForPreTraining, variables: dict, batch: dict, rng: jax.Array, step: jax.Array):
    """batch: input_ids, attention_mask, token_type_ids [B T], labels [B T] or (with masked_positions) [B M],
    next_sentence_label [B]: 0 where sentence B follows A. Returns the scalar and its parts."""
    out = _apply(model, variables, batch, rng)
    mlm, _ = cross_entropy(out.logits, batch["labels"])
    nsp, _ = cross_entropy(out.nsp, batch["next_sentence_label"])
    total = mlm + nsp
    return total, Aux({"loss": total, "mlm": mlm, "nsp": nsp})


def masking_loss(
    model: nn.Module, variables: dict, batch: dict, rng: jax.Array, step: jax.Array, *, masking: Masking, loss: Callable
) -> tuple[jax.Array, Aux]:
    """`loss` on words hidden anew at every step; batch as there, without labels and masked_positions.

    The original hides words ten times over when it writes the data, and then repeats them.
    """
    mask_rng, rng = jax.random.split(rng)
    hidden = mask_tokens(mask_rng, batch["input_ids"], batch["attention_mask"], masking)
    return loss(model, variables, {**batch, **hidden}, rng, step)


def loss(model: nn.Module, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Of all models with one head: labels [B], [B T] or (with masked_positions) [B M], IGNORED where none counts."""
    value, count = cross_entropy(_apply(model, variables, batch, rng).logits, batch["labels"])
    return value, Aux({"loss": value}, weight=count)
