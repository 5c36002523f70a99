"""Q-Former: a few learned queries read a frozen picture and hand on what words can use.

Source: Li et al. 2023, arXiv:2301.12597 (BLIP-2), sections 3.2 and 3.3, figures 2 and 3; what the paper leaves open
(masks, where the temperature and the smoothing stand, which rows may be negatives) from salesforce/LAVIS, blip2_models.

    images [B H W 3] -frozen ViT, norm-> [B S C] <-- cross-attention in every second block --.
    query_tokens [Q D] ------------.                                                         |
    input_ids [B T] -words-> [B T D] -- one self-attention, two feed-forwards -> queries [B Q D], text [B T D]

B batch, S tokens of a picture, C their width, Q queries, D width, T tokens of a text, E width of the shared space,
V vocabulary, N rows of the global batch. Texts are [CLS] words [SEP] padding.

Stage 1, all three on the same weights, told apart by who may look at whom:

    contrast  queries alone, texts alone    cosine of the best query and [CLS], against all rows of the global batch
    match     all at all                    does this text belong to this picture? hard negatives of the global batch
    caption   text at queries and backward  queries look at queries only, as in the contrast: both are one pass here

What reads the queries in stage 2 is in blip2.py. The original differs in this: it also drops attention weights, which
fused attention never holds; it takes the mean of a caption's tokens on each device before that of the devices; and its
ln_vision has epsilon 1e-5, where here, as in transformers, it is the tower's last norm and has the tower's.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import clip, vit
from mmjax.models.bert import INIT
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import attend, placed
from mmjax.nn.cache import KVCache, Layer
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux, LMOutput
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import masks, sharding
from mmjax.ops.cross_entropy import linear_cross_entropy, next_tokens, softmax_cross_entropy

TRAINABLE = r"^(?!vision/)|^vision/norm/"  # Task.trainable: the tower stays, the norm after it moves
SMOOTHING = 0.1  # of the labels of contrast and caption
NEVER = -10_000.0  # the logit of what shall not be drawn as a negative


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """The defaults are BLIP-2's: BERT-base, and every second block looks at the picture."""

    queries: int = 32  # Q
    image_width: int = 1408  # C
    vocab_size: int = 30_523  # V, BERT's words and [DEC]
    length: int = 512  # most tokens of a text
    width: int = 768  # D
    depth: int = 12
    num_heads: int = 12
    hidden: int = 3072  # of both feed-forwards
    cross_every: int = 2  # blocks 0, 2, 4 ... look at the picture
    text: bool = True  # whether texts go through it; stage 2 does without
    start_id: int = 30_522  # [DEC], which a caption begins with in place of [CLS]
    activation: Callable = gelu
    epsilon: float = 1e-12  # of the norms
    dropout: float = 0.1  # of embeddings and of what each part adds
    compute: Compute = Compute()

    def __post_init__(self):
        if not 1 <= self.cross_every <= self.depth:
            raise ValueError(f"cross_every must be in 1 ... depth={self.depth}, got {self.cross_every}")

    @classmethod
    def tiny(cls) -> "QFormerConfig":
        return cls(4, 16, 64, 32, width=16, depth=2, num_heads=2, hidden=32, start_id=63, dropout=0.0)


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Stage 1: what sees, the Q-Former, and the shared space."""

    vision: vit.ViTConfig  # its epsilon is also that of the norm after it
    qformer: QFormerConfig
    embed_dim: int = 256  # E
    temperature: float = 0.07  # where the learned one starts; cosines are divided by it
    contrast_weight: float = 1.0
    match_weight: float = 1.0
    caption_weight: float = 1.0
    compute: Compute = Compute()  # of the tower

    def __post_init__(self):
        seen, read = self.vision.width, self.qformer.image_width
        if seen != read:
            raise ValueError(f"qformer.image_width must be vision.width={seen}, got {read}")

    vocab_size = property(lambda self: self.qformer.vocab_size)
    length = property(lambda self: self.qformer.length)

    @classmethod
    def tiny(cls) -> "RetrievalConfig":
        return cls(vit.ViTConfig.tiny(), QFormerConfig.tiny(), embed_dim=8)


def vit_g() -> RetrievalConfig:
    """Section 3.4: the ViT-g of EVA (Fang et al. 2022, arXiv:2211.07636) without the last of its 40 blocks."""
    vision = dataclasses.replace(vit.vit_g(), depth=39, image_mean=clip.OPENAI_MEAN, image_std=clip.OPENAI_STD)
    return RetrievalConfig(vision, QFormerConfig())


def counted(input_ids: jax.Array, attention_mask: jax.Array | None) -> jax.Array:  # [B T] bool
    return jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)


# Who may look at whom: valid [B T] bool, which tokens of the texts count, and Q -> mask over queries and text.
# Queries alone need none, texts alone masks.Padding(valid).


def matching(valid: jax.Array, queries: int) -> masks.Mask:
    """All at all."""
    return masks.Padding(jnp.pad(valid, ((0, 0), (queries, 0)), constant_values=True))


def captioning(valid: jax.Array, queries: int) -> masks.Mask:
    """Queries at queries only; a word at all queries and at the words up to itself."""
    return masks.Prefix(queries) & matching(valid, queries)


class Streams(NamedTuple):
    """What goes through the blocks side by side; either may be missing."""

    queries: jax.Array | None  # [B Q D]
    text: jax.Array | None  # [B T D]

    def joined(self) -> jax.Array:  # [B Q+T D]
        return jnp.concatenate([x for x in self if x is not None], axis=1)

    def parted(self, x: jax.Array) -> "Streams":
        """What `joined` put together."""
        count = 0 if self.queries is None else self.queries.shape[1]
        return Streams(x[:, :count] if count else None, None if self.text is None else x[:, count:])


class Block(nn.Module):
    """norm(x + attention(x)) over both, norm(q + cross(q)) for queries where `crosses`, norm(x + mlp(x)) for each."""

    config: QFormerConfig
    crosses: bool
    dropout: float

    @nn.compact
    def __call__(
        self, streams: Streams, mask: masks.Mask | jax.Array | None, image: jax.Array | None,
        image_mask: masks.Mask | None, cache: Layer | None = None,
    ) -> Streams | tuple[Streams, KVCache]:  # fmt: skip
        c, dtype = self.config, self.config.compute.dtype
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        attention = partial(Attention, c.num_heads, dtype, INIT, INIT)
        mlp = partial(MLP, c.hidden, c.activation, dtype, INIT, INIT)

        def add(x: jax.Array, y: jax.Array, norm: str) -> jax.Array:
            return LayerNorm(c.epsilon, dtype, name=norm)(placed(x + drop(y)))

        x = streams.joined()
        y, renewed = attend(attention(name="attention"), x, (mask,), cache)
        queries, text = streams.parted(add(x, y, "norm1"))
        if queries is not None:
            if self.crosses:
                y = attention(name="cross")(queries, image_mask, context=image)
                queries = add(queries, y, "cross_norm")
            queries = add(queries, mlp(name="query_mlp")(queries), "query_norm")
        if text is not None:
            text = add(text, mlp(name="text_mlp")(text), "text_norm")
        streams = Streams(queries, text)
        return streams if cache is None else (streams, renewed)


class Period(nn.Module):
    """A block that looks at the picture, and those up to the next one that does."""

    config: QFormerConfig
    size: int
    dropout: float

    @nn.compact
    def __call__(self, streams: Streams, *args, cache: Layer | None = None) -> Streams | tuple[Streams, KVCache]:
        whole = None if cache is None else cache.whole
        for i in range(self.size):
            block = Block(self.config, i == 0, self.dropout, name=f"block{i}")
            place = None if cache is None else Layer(whole, cache.index * self.config.cross_every + i)
            streams, whole = attend(block, streams, args, place)
        return streams if cache is None else (streams, whole)


@struct.dataclass
class QFormerOutput:
    queries: jax.Array | None  # [B Q D]
    text: jax.Array | None  # [B T D]
    cache: KVCache | None

    @property
    def last_hidden_state(self) -> jax.Array:  # [B Q+T D]
        return Streams(self.queries, self.text).joined()


class QFormer(nn.Module):
    """The blocks alone: queries and words come embedded. Initialise it with all that it shall ever be called with."""

    config: QFormerConfig

    @nn.compact
    def __call__(
        self, query_embeds: jax.Array | None = None, encoder_hidden_states: jax.Array | None = None,
        encoder_attention_mask: jax.Array | None = None, text_embeds: jax.Array | None = None,
        mask: masks.Mask | jax.Array | None = None, cache: KVCache | None = None, *, train: bool = False,
    ) -> QFormerOutput:  # fmt: skip
        """query_embeds [B Q D] need the picture, encoder_hidden_states [B S C], of which encoder_attention_mask [B S]
        says what counts; text_embeds [B T D]; mask: who looks at whom among queries and words."""
        c = self.config
        if query_embeds is not None and encoder_hidden_states is None:
            raise ValueError("queries look at a picture; give encoder_hidden_states [B S C]")
        if text_embeds is not None and not c.text:
            raise ValueError("this Q-Former has no feed-forward for text; set text=True")
        norm, dropout = LayerNorm(c.epsilon, c.compute.dtype, name="norm"), c.dropout if train else 0.0
        drop = nn.Dropout(dropout, deterministic=dropout == 0)
        streams = Streams(*[x if x is None else drop(norm(x)) for x in (query_embeds, text_embeds)])
        image_mask = None if encoder_attention_mask is None else masks.Padding(encoder_attention_mask.astype(bool))
        args = mask, encoder_hidden_states, image_mask

        periods, rest = divmod(c.depth, c.cross_every)
        stack = Stack(partial(Period, c, c.cross_every, dropout), periods, c.compute, name="layers")
        streams, cache = stack(streams, *args, cache=cache)
        if rest:
            place = None if cache is None else Layer(cache, periods)
            streams, cache = attend(Period(c, rest, dropout, name="rest"), streams, args, place)
        return QFormerOutput(*streams, cache)


@struct.dataclass
class RetrievalOutput:
    itc: jax.Array  # [B C] cosine of each picture's best query and each text
    itm: jax.Array  # [B 2] logits of: picture and text of a row do not belong together, do
    image_embeds: jax.Array  # [B Q E] of length 1
    text_embeds: jax.Array  # [C E] of length 1


class Blip2Retrieval(nn.Module):
    """Which text belongs to which picture."""

    config: RetrievalConfig

    def setup(self):
        c, q, dtype = self.config, self.config.qformer, self.config.qformer.compute.dtype
        self.vision, self.qformer = vit.ViT(c.vision, c.compute), QFormer(q)
        self.query_tokens = self.param("query_tokens", nn.initializers.normal(0.02), (q.queries, q.width))
        self.embed = Embed(q.vocab_size, q.width, dtype, INIT)
        self.pos_embed = self.param("pos_embed", INIT, (q.length, q.width))
        shared, self.itm_head = partial(Linear, c.embed_dim), Linear(2)
        self.vision_projection, self.text_projection = shared(), shared()

    def see(self, images: jax.Array) -> jax.Array:  # [B H W 3] uint8, or float already normalised -> [B S C]
        return self.vision(images).last_hidden_state

    def words(self, input_ids: jax.Array, positions: jax.Array | None = None) -> jax.Array:  # [B T] -> [B T D]
        if input_ids.shape[1] > self.config.length:
            raise ValueError(f"input_ids must hold at most {self.config.length} tokens, got {input_ids.shape[1]}")
        table = self.pos_embed[: input_ids.shape[1]] if positions is None else self.pos_embed[positions]
        return self.embed(input_ids) + table.astype(self.embed.dtype)

    def ask(self, states: jax.Array, *args, **options) -> QFormerOutput:
        """What the queries, and maybe a text beside them, find in the picture [B S C]."""
        queries = jnp.broadcast_to(self.query_tokens, (len(states), *self.query_tokens.shape))
        return self.qformer(queries, states, None, *args, **options)

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B Q E] of length 1
        return self.answers(self.see(images))

    def answers(self, states: jax.Array) -> jax.Array:  # [B S C] -> [B Q E] of length 1
        return self.shared(self.ask(states).queries)

    def shared(self, queries: jax.Array) -> jax.Array:  # [B Q D] -> [B Q E] of length 1
        return clip.normalise(self.vision_projection(queries))

    def encode_text(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """[B T] int, [B T] bool -> [B E] of length 1, at [CLS]."""
        mask = masks.Padding(counted(input_ids, attention_mask))
        out = self.qformer(text_embeds=self.words(input_ids), mask=mask, train=train)
        return clip.normalise(self.text_projection(out.text[:, 0]))

    def match(
        self, states: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """What `see` gave [B S C], [B T] int, [B T] bool -> [B 2] logits: row by row, do they belong together?"""
        valid = counted(input_ids, attention_mask)
        out = self.ask(states, self.words(input_ids), matching(valid, self.config.qformer.queries), train=train)
        return self.itm_head(out.queries.astype(jnp.float32)).mean(1)

    def __call__(
        self, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> RetrievalOutput:
        """images [B H W 3], input_ids [B T] int, attention_mask [B T] bool, False at padding."""
        states, texts = self.see(images), self.encode_text(input_ids, attention_mask)
        embeds, itm = self.answers(states), self.match(states, input_ids, attention_mask)
        return RetrievalOutput(strongest(embeds, texts), itm, embeds, texts)


class CaptionHead(nn.Module):
    """BERT's: one more layer, then each word's similarity. The last feature is 1; its row of the head is the bias."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D+1]
        c, dtype = self.config, self.config.compute.dtype
        self.param("bias", nn.initializers.zeros, (c.vocab_size,))  # read by Stage1.head
        x = c.activation(Linear(c.width, dtype=dtype, kernel_init=INIT, name="transform")(x))
        x = LayerNorm(c.epsilon, dtype, name="norm")(x)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)], constant_values=1)


class Stage1(Blip2Retrieval):
    """What is trained: also tells captions, and learns its temperature."""

    def setup(self):
        super().setup()
        self.captioner = CaptionHead(self.config.qformer)
        self.temperature = self.param("temperature", nn.initializers.constant(self.config.temperature), ())

    def __call__(
        self, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, train: bool = False
    ) -> "Stage1Output":
        """As Blip2Retrieval's, with captions in place of a match; queries and captions in one pass."""
        c, states, valid = self.config.qformer, self.see(images), counted(input_ids, attention_mask)
        words = self.words(jnp.asarray(input_ids).at[:, 0].set(c.start_id))
        out = self.ask(states, words, captioning(valid, c.queries), train=train)
        texts = self.encode_text(input_ids, attention_mask, train=train)
        if self.is_initializing():
            self.match(states, input_ids)
        return Stage1Output(states, self.shared(out.queries), texts, self.captioner(out.text))

    def extend(
        self, input_ids: jax.Array, cache: KVCache, attention_mask: jax.Array | None = None,
        *, images: jax.Array | None = None,
    ) -> tuple[LMOutput, KVCache]:  # fmt: skip
        """Reads further words [B T] of captions; the first, [DEC], with their pictures [B H W 3] (nn/sampling.py)."""
        count = self.config.qformer.queries
        if cache.fresh != (images is not None):
            raise ValueError("the first words of captions come with images, those that follow without")
        if images is None:
            positions, mask, cache = cache.open(input_ids.shape, attention_mask)
            words = self.words(input_ids, jnp.maximum(positions - count, 0))
            out = self.qformer(text_embeds=words, mask=mask, cache=cache)
        else:
            valid = counted(input_ids, attention_mask)
            whole = matching(valid, count).valid
            positions, _, cache = cache.open(whole.shape, whole)
            words = self.words(input_ids, jnp.maximum(positions[:, count:] - count, 0))
            out = self.ask(self.see(images), words, captioning(valid, count), cache)
        hidden = self.captioner(out.text)
        logits = hidden @ self.head(self.variables["params"]).astype(hidden.dtype)
        return LMOutput(hidden, logits.astype(jnp.float32)), out.cache.close()

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> KVCache:
        """Room for the queries and `length` words a row."""
        c = self.config.qformer
        size = c.queries + length, c.num_heads, c.width // c.num_heads
        return KVCache.empty(c.depth, batch_size, *size, c.compute.dtype)

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[D+1 V] what the last hidden state of captions is multiplied by."""
        return jnp.concatenate([params["embed"]["embedding"].T, params["captioner"]["bias"][None]])


@struct.dataclass
class Stage1Output:
    states: jax.Array  # [B S C] the picture
    image_embeds: jax.Array  # [B Q E] of length 1
    text_embeds: jax.Array  # [B E] of length 1
    captions: jax.Array  # [B T D+1] for Stage1.head


def strongest(image_embeds: jax.Array, text_embeds: jax.Array) -> jax.Array:
    """[B Q E], [C E] -> [B C]: the largest cosine of a picture's queries; only that query gets a gradient."""
    cosines = jnp.einsum("bqe,ce->bcq", image_embeds, text_embeds, precision="highest")
    best = jnp.argmax(cosines, axis=-1, keepdims=True)  # jnp.max would split the gradient among equal ones
    return jnp.take_along_axis(cosines, best, axis=-1)[..., 0]


def similarities(image_embeds: jax.Array, text_embeds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N Q E], [N E] -> cosines of pictures (rows) with texts, and of texts (rows) with pictures, both [N N].

    A row's gradient goes to the row's own side only: the original gathers the others without one.
    """
    others = jax.lax.stop_gradient
    to_text = strongest(image_embeds, others(text_embeds))
    to_image = rearrange(strongest(others(image_embeds), text_embeds), "image text -> text image")
    return tuple(sharding.constrain(x, sharding.BATCH, None) for x in (to_text, to_image))


def contrast(logits: jax.Array, positive: jax.Array) -> jax.Array:
    """Cross entropy of rows [N N] with smoothed targets: even among what is positive [N N] bool."""
    target = (1 - SMOOTHING) * positive / positive.sum(-1, keepdims=True) + SMOOTHING / positive.shape[-1]
    return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()


def hard_negatives(rng: jax.Array, to_text: jax.Array, to_image: jax.Array, positive: jax.Array) -> list[jax.Array]:
    """Logits [N N] of pictures and of texts -> a picture for each text and a text for each picture, both [N] rows of
    the global batch, drawn as likely as they are mistaken for the right one."""
    pairs = zip(jax.random.split(rng), (to_image, to_text), strict=True)
    return [jax.random.categorical(rng, jnp.where(positive, NEVER, logits)) for rng, logits in pairs]


def in_three(right: jax.Array, image: jax.Array, text: jax.Array) -> jax.Array:
    """[N ...] of right pairs, wrong images, wrong texts -> [3N ...], row by row: a mesh moves none of the first."""
    return rearrange([right, image, text], "k n ... -> (n k) ...")


def loss(
    model: Stage1, variables: dict, batch: dict, rng: jax.Array, step: jax.Array, *, draw: Callable = hard_negatives
) -> tuple[jax.Array, Aux]:
    """Section 3.2, over the global batch. batch: images [B H W 3], input_ids [B T] ([CLS] words [SEP] padding),
    attention_mask [B T], and where several texts speak of one picture image_id [B]. draw: as hard_negatives."""
    c, params = model.config, variables["params"]
    read_rng, match_rng, draw_rng = jax.random.split(rng, 3)
    input_ids, valid = jnp.asarray(batch["input_ids"]), jnp.asarray(batch["attention_mask"], bool)
    out = model.apply(variables, batch["images"], input_ids, valid, train=True, rngs={"dropout": read_rng})
    ids = batch.get("image_id", jnp.arange(len(input_ids)))
    positive = ids[:, None] == ids[None]
    to_text, to_image = (x / params["temperature"] for x in similarities(out.image_embeds, out.text_embeds))
    itc = (contrast(to_text, positive) + contrast(to_image, positive)) / 2
    image, text = draw(draw_rng, *jax.lax.stop_gradient((to_text, to_image)), positive)
    states = in_three(out.states, out.states[image], out.states)
    texts = (in_three(x, x, x[text]) for x in (input_ids, valid))
    logits = model.apply(variables, states, *texts, train=True, rngs={"dropout": match_rng}, method="match")
    belongs = jnp.tile(jnp.array([1, 0, 0]), len(input_ids))
    itm = softmax_cross_entropy(logits, belongs).mean()
    following = next_tokens(input_ids, valid)
    itg = linear_cross_entropy(out.captions, model.head(params), following, label_smoothing=SMOOTHING)
    total = c.contrast_weight * itc + c.match_weight * itm + c.caption_weight * itg
    accuracy = jnp.mean(jnp.argmax(logits, -1) == belongs)
    return total, Aux({"loss": total, "itc": itc, "itm": itm, "itg": itg, "match_accuracy": accuracy})
