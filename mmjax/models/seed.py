"""SEED: a picture as a row of ids that a language model can read from left to right and write in the same way.

Sources: Ge et al. 2023, arXiv:2307.08041 (SEED), section 3; Ge et al. 2023b, arXiv:2310.01218 (SEED-LLaMA), section 3
and figure 3; what the papers leave open (masks, widths, weights of losses) from AILab-CVC/SEED.

    images [B H W 3] -frozen ViT, norm-> [B S C] -Q-Former, its queries CAUSAL-> [B Q D]                        stage 1
        -tanh MLP-> [B Q d] -nearest code-> ids [B Q]                                                           stage 2
        -tanh MLP-> [B Q D] -positions, blocks, head-> [B E], what a frozen encoder says of the picture -DiT-> [B H W C]

B batch, S tokens of a picture, C their width, Q queries, D width, d that of a code, K codes, E width of the target,
T tokens of a text.

Query q looks at the whole picture and at queries 0 ... q, so ids[:, :q] are the same whatever comes after.

Stage 1 (`Stage1`, `stage1_loss`): contrast of the LAST query, which alone has seen all others, with the text's [CLS];
queries, Q-Former and the norm after the tower learn. Stage 2 (`Seed`, `loss`): all of that is frozen; codes, both MLPs
and what stands behind them learn to give back the queries, and to say what the target says. Stage 3 (`decoder_loss`) is
ours: the authors take a Stable Diffusion that was trained on the target's vectors, here a DiT learns to draw from them
and knows no ids; `to_images` glues both. In SEED-LLaMA ids are words of a language model: text/image_tokens.py has its
rows, and nn/sampling.py's `generate_among` writes codes and nothing else.

The original differs in this: it makes the queries causal only where they are 32; it also drops attention weights, and
in stage 2 parts of the frozen Q-Former; and its ln_vision has epsilon 1e-5, where here it has the tower's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import blip2, clip, diffusion, qformer, vit
from mmjax.models.bert import INIT
from mmjax.models.qformer import QFormer, QFormerConfig, RetrievalConfig
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.mlp import MLP, gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.quantizers import Codebook, MovingCodebook, Quantized
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import images as image_ops
from mmjax.ops import masks

STAGE1_TRAINABLE = qformer.TRAINABLE  # Task.trainable: the tower stays, the norm after it moves
TRAINABLE = r"^(?!vision/|qformer/|query_tokens)"  # of stage 2


# --- what the decoded codes shall say: a frozen encoder of the user's, its variables in the collection "target"


class Targets(NamedTuple):
    image: jax.Array  # [B E]
    text: jax.Array | None = None  # [B R W], where there is a text branch


Target = Callable[[Mapping, dict], Targets]  # variables["target"], batch -> what it says of each row


def projected(model: clip.CLIP, images: jax.Array) -> jax.Array:
    """CLIP's embedding [B E] before it is normalised, as unCLIP decoders read it."""
    images = image_ops.to_float(images, model.config.image_mean, model.config.image_std)
    return model.vision_projection(model.vision(images).pooler_output).astype(jnp.float32)


def clip_target(model: clip.CLIP, variables: Mapping, batch: dict, *, text: bool = False) -> Targets:
    """For SeedConfig.target: partial(clip_target, clip.CLIP(config)); batch: images, as SEED's own tower is shown them.
    text=True: also the states of input_ids [B R], padding and all, as Stable Diffusion reads them."""
    image = model.apply(variables, batch["images"], method=projected)
    states = lambda model, ids: model.text(ids).last_hidden_state  # noqa: E731
    return Targets(image, model.apply(variables, batch["input_ids"], method=states) if text else None)


# --- what decoded codes become: config of the Q-Former, features -> module of [B Q D] -> [B R features]


class Down(nn.Module):
    """Each token made small, all of them side by side, one layer: the released tokenizer. R = 1."""

    config: QFormerConfig
    features: int
    sizes: tuple[int, ...] = (256, 128, 32)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        dtype = self.config.compute.dtype
        for i, size in enumerate(self.sizes):
            x = jax.nn.relu(x) if i else x
            x = Linear(size, False, dtype, torch_linear, name=f"down{i}")(x)
        return Linear(self.features, True, dtype, torch_linear, name="out")(rearrange(x, "b q d -> b 1 (q d)"))


class Reverse(nn.Module):
    """R queries of a Q-Former look at them: the released training, R = 1 for a picture and 77 for a text's states."""

    config: QFormerConfig
    features: int
    queries: int = 1  # R
    depth: int = 4  # 12 where the released inference has it

    @nn.nowrap
    def sizes(self) -> QFormerConfig:
        every = min(self.config.cross_every, self.depth)
        sizes = {"queries": self.queries, "image_width": self.config.width, "depth": self.depth, "cross_every": every}
        return dataclasses.replace(self.config, text=False, **sizes)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        c = self.sizes()
        tokens = self.param("query_tokens", nn.initializers.normal(0.02), (self.queries, c.width))
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        x = QFormer(c, name="qformer")(tokens, x, train=train).queries
        return Linear(self.features, True, c.compute.dtype, torch_linear, name="out")(x)


@dataclasses.dataclass(frozen=True)
class SeedConfig:
    """Stage 2. Published sizes are seed_tokenizer()."""

    vision: vit.ViTConfig
    qformer: QFormerConfig  # stage 1's
    target: Target | None = None  # only the loss needs it
    quantizer: nn.Module = Codebook(8192, 32, commitment=1.0, codebook=0.25)  # the weights as in taming-transformers
    depth: int = 4  # of the blocks after the codes
    image_dim: int = 1024  # E
    image_head: Callable[..., nn.Module] = Down  # or Reverse
    text_dim: int = 768  # W
    text_head: Callable[..., nn.Module] | None = None  # partial(Reverse, queries=77) in the first version of SEED
    code_weight: float = 5.0
    image_weight: float = 0.5
    text_weight: float = 0.5
    reconstruction_weight: float = 2.0
    compute: Compute = Compute()  # of the tower

    def __post_init__(self):
        RetrievalConfig(self.vision, self.qformer)  # refuses what does not fit

    @classmethod
    def tiny(cls) -> "SeedConfig":
        codebook = Codebook(16, 4, commitment=1.0, codebook=0.25)
        down = partial(Down, sizes=(8, 4))
        return cls(
            vit.ViTConfig.tiny(), QFormerConfig.tiny(), partial(clip_target, clip.CLIP(clip.CLIPConfig.tiny())),
            codebook, depth=1, image_dim=8, image_head=down,
        )  # fmt: skip


def seed_tokenizer() -> SeedConfig:
    """Ge et al. 2023b, section 3.1: EVA's ViT-g, BLIP-2's Q-Former, and vectors of the CLIP ViT-H/14 of LAION."""
    c = qformer.vit_g()
    return SeedConfig(c.vision, c.qformer)


def small_judge(vocab_size: int, tiny: bool = False) -> clip.CLIP:
    """The target of `small_tokenizer`: a CLIP of 1 M parameters, or less."""
    c = clip.CLIPConfig.tiny() if tiny else clip.small(vocab_size, length=16)
    return clip.CLIP(
        dataclasses.replace(
            c, text=dataclasses.replace(c.text, vocab_size=vocab_size), compute=Compute(unroll=not tiny)
        )
    )


def small(vision: vit.ViTConfig, vocab_size: int, length: int, queries: int = 16) -> RetrievalConfig:
    """Stage 1, not published: learns names of small pictures in minutes on a CPU, behind any ViT."""
    sizes = {"width": 96, "depth": 2, "num_heads": 3, "hidden": 192, "dropout": 0.0, "compute": Compute(unroll=True)}
    return RetrievalConfig(vision, QFormerConfig(queries, vision.width, vocab_size, length, **sizes), embed_dim=96)


def small_tokenizer(stage1: RetrievalConfig, target: clip.CLIP, codes: int = 512) -> SeedConfig:
    """Stage 2 on `small`: pictures become as many ids as it has queries."""
    return SeedConfig(
        stage1.vision, stage1.qformer, partial(clip_target, target), MovingCodebook(codes, 16, threshold=0.03), depth=1,
        image_dim=target.config.embed_dim, image_head=partial(Down, sizes=(64, 32, 16)), compute=stage1.compute,
    )  # fmt: skip


# --- stage 1


@struct.dataclass
class Stage1Output:
    image_embeds: jax.Array  # [B E] of length 1, of the last query
    text_embeds: jax.Array  # [B E] of length 1


def look(former: QFormer, query_tokens: jax.Array, states: jax.Array, *, train: bool = False) -> jax.Array:
    """What causal queries [Q D] find in pictures [B S C] -> [B Q D]."""
    queries = jnp.broadcast_to(query_tokens, (len(states), *query_tokens.shape))
    return former(queries, states, mask=masks.Causal(), train=train).queries


class Stage1(nn.Module):
    """Which text belongs to which picture. BLIP-2's Q-Former without its match and its captions."""

    config: RetrievalConfig

    def setup(self):
        c, q = self.config, self.config.qformer
        self.vision, self.qformer = vit.ViT(c.vision, c.compute), QFormer(q)
        self.query_tokens = self.param("query_tokens", nn.initializers.normal(0.02), (q.queries, q.width))
        self.embed = Embed(q.vocab_size, q.width, q.compute.dtype, INIT)
        self.pos_embed = self.param("pos_embed", INIT, (q.length, q.width))
        self.vision_projection, self.text_projection = Linear(c.embed_dim), Linear(c.embed_dim)
        self.temperature = self.param("temperature", nn.initializers.constant(c.temperature), ())

    def encode_image(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """[B H W 3] uint8, or float already normalised -> [B E] of length 1."""
        states = self.vision(images).last_hidden_state
        queries = look(self.qformer, self.query_tokens, states, train=train)
        return clip.normalise(self.vision_projection(queries[:, -1]))

    def encode_text(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """[CLS] words [SEP] padding, [B T] int, [B T] bool -> [B E] of length 1."""
        length = input_ids.shape[1]
        if length > self.config.length:
            raise ValueError(f"input_ids must hold at most {self.config.length} tokens, got {length}")
        words = self.embed(input_ids) + self.pos_embed[:length].astype(self.embed.dtype)
        mask = masks.Padding(qformer.counted(input_ids, attention_mask))
        text = self.qformer(text_embeds=words, mask=mask, train=train).text
        return clip.normalise(self.text_projection(text[:, 0]))

    def __call__(
        self, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, train: bool = False
    ) -> Stage1Output:
        image_embeds = self.encode_image(images, train=train)
        return Stage1Output(image_embeds, self.encode_text(input_ids, attention_mask, train=train))


def stage1_loss(
    model: Stage1, variables: dict, batch: dict, rng: jax.Array, step: jax.Array
) -> tuple[jax.Array, Aux]:  # fmt: skip
    """Over the global batch. batch: images [B H W 3], input_ids [B T] ([CLS] words [SEP] padding), attention_mask
    [B T], and where several texts speak of one picture image_id [B] int."""
    input_ids, valid = jnp.asarray(batch["input_ids"]), jnp.asarray(batch["attention_mask"], bool)
    out = model.apply(variables, batch["images"], input_ids, valid, train=True, rngs={"dropout": rng})
    ids = batch.get("image_id", jnp.arange(len(input_ids)))
    positive = ids[:, None] == ids[None]
    temperature = variables["params"]["temperature"]
    cosines = qformer.similarities(out.image_embeds[:, None], out.text_embeds)
    to_text, to_image = (x / temperature for x in cosines)
    total = (qformer.contrast(to_text, positive) + qformer.contrast(to_image, positive)) / 2
    right = jnp.take_along_axis(positive, jnp.argmax(to_text, -1)[:, None], axis=1)
    return total, Aux({"loss": total, "temperature": temperature, "accuracy": right.mean()})


def frozen_of(params: dict) -> dict:
    """From stage 1's parameters those that stage 2 begins with, as new buffers."""
    eyes = blip2.eyes_of(params)
    return {"vision": eyes["tower"], "qformer": eyes["qformer"], "query_tokens": eyes["query_tokens"]}


# --- stage 2


@struct.dataclass
class SeedOutput:
    queries: jax.Array  # [B Q D] what stage 1's queries found; no gradient goes there
    reconstruction: jax.Array  # [B Q D]
    image: jax.Array  # [B E]
    text: jax.Array | None  # [B R W]
    quantized: Quantized


class TanhMLP(nn.Module):
    hidden: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... in] -> [... features]
        x = jnp.tanh(Linear(self.hidden, True, self.dtype, torch_linear, name="up")(x))
        return Linear(self.features, True, self.dtype, torch_linear, name="down")(x)


class Decoder(nn.Module):
    """Positions, then blocks in which all tokens look at all; no norm after the last."""

    config: QFormerConfig
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B Q D] -> [B Q D]
        c, dtype = self.config, self.config.compute.dtype
        x = x + self.param("pos_embed", nn.initializers.zeros, (c.queries, c.width)).astype(x.dtype)
        attention = partial(Attention, c.num_heads, dtype, torch_linear, torch_linear)
        mlp = partial(MLP, 4 * c.width, gelu, dtype, torch_linear, torch_linear)
        block = partial(PreNormBlock, attention, mlp, partial(LayerNorm, 1e-6, dtype))
        return Stack(block, self.depth, c.compute, name="layers")(x)[0]


class Seed(nn.Module):
    """The tokenizer, all but what draws."""

    config: SeedConfig

    def setup(self):
        c = self.config
        q = dataclasses.replace(c.qformer, text=False)
        self.vision, self.qformer = vit.ViT(c.vision, c.compute), QFormer(q)
        self.query_tokens = self.param("query_tokens", nn.initializers.normal(0.02), (q.queries, q.width))
        self.quantizer = c.quantizer
        self.encode_mlp = TanhMLP(q.width, c.quantizer.dim, q.compute.dtype)
        self.decode_mlp = TanhMLP(c.quantizer.dim, q.width, q.compute.dtype)
        self.reconstruct = Decoder(q, c.depth)
        self.image_decoder, self.image_head = Decoder(q, c.depth), c.image_head(q, c.image_dim)
        if c.text_head is not None:
            self.text_decoder, self.text_head = Decoder(q, c.depth), c.text_head(q, c.text_dim)

    def find(self, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B Q D]; frozen
        states = self.vision(images).last_hidden_state
        return jax.lax.stop_gradient(look(self.qformer, self.query_tokens, states))

    def quantise(self, queries: jax.Array, *, train: bool = False) -> Quantized:  # [B Q D]; of float32 vectors [B Q d]
        return self.quantizer(self.encode_mlp(queries).astype(jnp.float32), train=train)

    def encode(self, images: jax.Array) -> jax.Array:
        """[B H W 3] uint8, or float already normalised -> ids [B Q] int32."""
        return self.quantise(self.find(images)).ids

    def image_of(self, x: jax.Array, *, train: bool = False) -> jax.Array:  # [B Q D] -> [B E] float32
        return self.image_head(self.image_decoder(x), train=train)[:, 0].astype(jnp.float32)

    def text_of(self, x: jax.Array, *, train: bool = False) -> jax.Array:  # [B Q D] -> [B R W] float32
        return self.text_head(self.text_decoder(x), train=train).astype(jnp.float32)

    def features_of(self, ids: jax.Array) -> jax.Array:
        """ids [B Q] in [0, K) -> [B E], the condition of a decoder of the target's vectors."""
        return self.image_of(self._read(ids))

    def text_states_of(self, ids: jax.Array) -> jax.Array:
        """ids [B Q] in [0, K) -> [B R W], where there is a text branch."""
        if self.config.text_head is None:
            raise ValueError("this tokenizer has no text branch; set SeedConfig.text_head")
        return self.text_of(self._read(ids))

    def _read(self, ids: jax.Array) -> jax.Array:  # [B Q] -> [B Q D]
        if ids.ndim != 2 or ids.shape[1] != self.config.qformer.queries:
            raise ValueError(f"ids must be [B {self.config.qformer.queries}], got {list(ids.shape)}")
        return self.decode_mlp(self.quantizer.embed(ids))

    def __call__(self, images: jax.Array, *, train: bool = False) -> SeedOutput:
        """[B H W 3]. train=True needs random numbers "dropout", and "codes" where the codebook is of averages."""
        queries = self.find(images)
        quantized = self.quantise(queries, train=train)
        x = self.decode_mlp(quantized.latents)
        text = None if self.config.text_head is None else self.text_of(x, train=train)
        return SeedOutput(queries, self.reconstruct(x), self.image_of(x, train=train), text, quantized)


def cosine_error(x: jax.Array, wanted: jax.Array) -> jax.Array:
    """1 - cosine of tokens [B Q D], the mean over all -> []."""
    return jnp.mean(1 - jnp.sum(clip.normalise(x) * clip.normalise(wanted), -1))


def loss(model: Seed, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Stage 2. batch: images [B H W 3], and what config.target reads besides; variables["target"] are its variables."""
    c = model.config
    if c.target is None or "target" not in variables:
        raise ValueError('stage 2 needs SeedConfig.target, and its variables as the collection "target"')
    wanted = jax.lax.stop_gradient(c.target(variables["target"], batch))
    drop_rng, code_rng = jax.random.split(rng)
    out, changed = model.apply(
        variables, batch["images"], train=True, mutable=["codebook"], rngs={"dropout": drop_rng, "codes": code_rng}
    )
    if out.image.shape != wanted.image.shape:
        raise ValueError(f"the target gives {list(wanted.image.shape)}; set image_dim, which is {c.image_dim}")
    image, text = jnp.mean(jnp.square(out.image - wanted.image)), jnp.zeros(())
    if out.text is not None:
        if wanted.text is None or out.text.shape != wanted.text.shape:
            found = wanted.text if wanted.text is None else list(wanted.text.shape)
            raise ValueError(f"the text branch gives {list(out.text.shape)}, but the target {found}")
        text = jnp.mean(jnp.square(out.text - wanted.text))
    codes, rec = out.quantized.loss, cosine_error(out.reconstruction, out.queries)
    total = c.code_weight * codes + c.image_weight * image + c.text_weight * text + c.reconstruction_weight * rec
    parts = {"loss": total, "codes": codes, "image": image, "reconstruction": rec}
    parts |= {} if out.text is None else {"text": text}
    parts["image_cosine"] = 1 - cosine_error(out.image, wanted.image)
    return total, Aux({**parts, **out.quantized.metrics}, changed)


# --- what draws


def decoder_loss(
    model: diffusion.DiT, variables: dict, batch: dict, rng: jax.Array, step: jax.Array, *, target: Target,
    objective: Callable = diffusion.flow_loss,
) -> tuple[jax.Array, Aux]:  # fmt: skip
    """A decoder of the target's vectors learns from pictures alone; model.config.condition is diffusion.Signal.

    batch: images [B H W 3] as the target sees them, and where something else is to be drawn (latents, another size)
    drawn [B H' W' C] float; variables["target"] are the target's. objective: diffusion's flow_loss or noise_loss.
    """
    condition = jax.lax.stop_gradient(target(variables["target"], batch).image)
    drawn = batch["drawn"] if "drawn" in batch else image_ops.to_float(batch["images"], 0.5, 0.5)
    own = {name: x for name, x in variables.items() if name != "target"}
    return objective(model, own, {"images": drawn, "condition": condition}, rng, step)


def to_images(
    model: Seed, variables: dict, ids: jax.Array, decoder: diffusion.DiT, decoder_variables: dict, rng: jax.Array,
    *, sample: Callable = diffusion.sample_flow, **how,
) -> jax.Array:  # fmt: skip
    """ids [B Q] -> [B H W C] as the decoder draws; how: steps, guidance ... of `sample`, one of diffusion's."""
    condition = model.apply(variables, ids, method="features_of")
    return sample(decoder, decoder_variables, rng, condition, **how)
