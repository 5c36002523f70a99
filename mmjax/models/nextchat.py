"""NExT-Chat: a place is a vector. One token asks where, and what the network thinks there is decoded into a box.

Source: Zhang et al. 2023, arXiv:2311.04498 (pix2emb), section 3; details from NExT-ChatV/NExT-Chat.

    "Answer: <at> <boxes> ."     state of <at> [W] -decoder-> box [4]     box [4] -encoder-> embedding of <boxes> [W]

A place in the text is always the pair <at> <boxes>. The model writes <at> as any other token; its last state is decoded
to a box, and the embedding of <boxes>, which follows, is that box encoded again: in training the true one, in an
answer the one just decoded. So the loss of a place is of boxes, not of digits. Below is LLaVA-1.5 (models/llava.py).

    input_ids [B T], boxes [B K 4] -> logits [B T V], and of the k-th <at> of each row: states [B K W], boxes [B K 4]

B batch, T tokens, K places of a row at most, W width. Boxes are (x0, y0, x1, y1) in [0, 1] of a white square
(ops.images.in_square), not rounded; what is decoded may lie outside of it, or be reversed.

Not as the authors' code: it adds one stored sample to each batch, so that no parameter is ever without a gradient, and
gives it a weight of 1e-10; here means are over the places that there are. It weighs the overlap with 0.2, the paper
with 0.8: `giou_weight`. It lets a token be drawn after <at> and writes <boxes> over it afterwards; here it is <boxes>.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import clip, llama, llava, sam
from mmjax.nn import sampling
from mmjax.nn.cache import KVCache
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.outputs import EMPTY, Aux, LMOutput
from mmjax.nn.sampling import Sampling
from mmjax.ops import boxes as box_ops
from mmjax.ops import images as image_ops
from mmjax.ops import segmentation
from mmjax.ops.cross_entropy import IGNORED
from mmjax.text.coordinates import BOXES, Group

AT = "<at>"
# The ids that the vocabulary grows by: <im_patch>, <im_start>, <im_end>, <at>, <boxes>. shikra.grown(averaged=4).
GREEDY = Sampling(stop_ids=(2,))  # up to </s>
BOX_STAGES = r"^(projector|language|loc_encoder|loc_decoder)/"  # Task.trainable of stages 1 and 2
MASK_STAGE = r"^(seg_prompt|sam/decoder)/"  # and of stage 3
normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class NextChatConfig(llava.LlavaConfig):
    at_token: int = 32_003
    box_token: int = 32_004
    l1_weight: float = 2.0
    giou_weight: float = 0.2  # 0.8 in the paper, section 3.3
    cycle_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        ids = (self.image_token, self.at_token, self.box_token)
        if len(set(ids)) < 3 or not all(0 <= one < self.language.vocab_size for one in ids):
            raise ValueError(
                f"image_token, at_token and box_token must be three ids below {self.language.vocab_size}, got {ids}; "
                "a language model's table grows by shikra.grown"
            )

    @classmethod
    def tiny(cls) -> "NextChatConfig":
        c = llava.LlavaConfig.tiny()
        return cls(c.vision, c.language, image_token=59, at_token=62, box_token=63)


def nextchat_7b() -> NextChatConfig:  # section 4.1: CLIP at 336 pixels, Vicuna 1.5
    return _published(llama.llama_7b())


def nextchat_13b() -> NextChatConfig:
    return _published(llama.llama_13b())


def _published(language: llama.LlamaConfig) -> NextChatConfig:
    language = dataclasses.replace(language, vocab_size=32_005, length=4096, epsilon=1e-5)
    return NextChatConfig(clip.vit_l14_336().vision, language)


@dataclasses.dataclass(frozen=True)
class NextChatSegConfig(NextChatConfig):
    sam_config: sam.SamConfig = dataclasses.field(default_factory=sam.vit_h)
    prompt_tokens: int = 4  # that a state becomes for SAM

    @classmethod
    def tiny(cls) -> "NextChatSegConfig":
        return cls(**vars(NextChatConfig.tiny()), sam_config=sam.SamConfig.tiny())


class Pairs:
    """How a group of boxes stands in the text: a form of text/coordinates.py, for the tasks of models/shikra.py. The
    numbers go into `boxes`, those of a row in the order of its text."""

    def write(self, group: Group) -> str:
        if any(len(place) != 4 for place in group):
            raise ValueError(f"NExT-Chat's places are boxes of 4 numbers, got {group!r}")
        return " ".join([f"{AT} {BOXES}"] * len(group))


@struct.dataclass
class NextChatOutput:
    last_hidden_state: jax.Array  # [B T W]
    logits: jax.Array  # [B T V] float32
    image_features: Any  # [B*M N D] before the projector; None without pictures
    states: jax.Array  # [B K W] of each row's k-th <at>
    boxes: jax.Array  # [B K 4] float32, decoded
    found: jax.Array  # [B K] bool, whether the row has a k-th <at>
    states_again: jax.Array  # [B K W] `boxes` encoded
    inputs_again: jax.Array | None  # [B K 4] the boxes that were given, encoded and decoded


def take(values: jax.Array, at: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """values [B T ...], at [B T] bool -> [B count ...], those at each row's first True positions, and [B count] bool,
    whether there are so many. The way back of llava.put."""
    count = min(count, at.shape[1])
    where = jnp.argsort(~at, axis=1, stable=True)[:, :count]  # [B count]
    rows = jnp.arange(at.shape[0])[:, None]
    return jnp.asarray(values)[rows, where], jnp.arange(count) < at.sum(1, keepdims=True)


# Losses of places; masks say which of the K count


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """values [B K ...], mask [B K] -> [], the mean over the last axes of what counts; 0 where nothing does."""
    mask = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
    total = jnp.where(mask, values.astype(jnp.float32), 0).sum()
    return total / jnp.maximum(mask.sum() * (values.size // mask.size), 1)


def box_losses(found: jax.Array, wanted: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B K 4] twice -> mean distance of a coordinate, and 1 - generalised overlap, without boxes that are reversed."""
    distance = masked_mean(jnp.abs(found - wanted), mask)
    mask = mask & box_ops.valid(found)
    inside = jnp.where(mask[..., None], found, wanted)  # so that what doesn't count sends no NaN
    return distance, masked_mean(1 - box_ops.giou(inside, wanted), mask)


def place_losses(out: NextChatOutput, wanted: jax.Array, learned: jax.Array, given: jax.Array) -> dict[str, jax.Array]:
    """Section 3.3. wanted [B K 4]; learned [B K] bool, places that the assistant says; given [B K], that there are.

    Nothing is stopped in the two cycles: a box encoded should be the state that it was decoded from, and an embedding
    decoded the box that it was encoded from.
    """
    distance, overlap = box_losses(out.boxes, wanted, learned)
    return {
        "l1": distance,
        "giou": overlap,
        "cycle_states": masked_mean((out.states_again - out.states).astype(jnp.float32) ** 2, learned),
        "cycle_boxes": masked_mean(jnp.abs(out.inputs_again - wanted), given),
    }


# Modules


class TwoLayers(nn.Module):
    hidden: int
    features: int
    dtype: Any = jnp.float32
    kernel_init: Callable = normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(Linear(self.hidden, True, self.dtype, self.kernel_init, name="up")(x))
        return Linear(self.features, True, self.dtype, self.kernel_init, name="down")(x)


class NextChat(llava.Llava):
    config: NextChatConfig

    def setup(self):
        super().setup()
        c = self.config.language
        self.loc_encoder = TwoLayers(c.width // 2, c.width, c.compute.dtype)
        self.loc_decoder = TwoLayers(c.width // 2, 4, c.compute.dtype)

    def __call__(
        self,
        input_ids: jax.Array,
        images: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        boxes: jax.Array | None = None,
    ) -> NextChatOutput:
        """As llava.Llava's; boxes [B K 4], the k-th is put at the row's k-th <boxes>, and so many <at> are decoded;
        None: the embedding of <boxes> itself, and one <at> a row."""
        features = None if images is None else self.see(images)
        splice = self.spliced(input_ids, features, boxes)
        out = llava.read(self.language, input_ids, splice, attention_mask, positions, segments)
        at = input_ids == self.config.at_token
        states, found = take(out.last_hidden_state, at, 1 if boxes is None else boxes.shape[1])
        decoded = self.decode_boxes(states)
        inputs = jnp.zeros((1, 1, 4)) if boxes is None and self.is_initializing() else boxes
        again = None if inputs is None else self.decode_boxes(self.loc_encoder(inputs))
        return NextChatOutput(
            out.last_hidden_state, out.logits, features, states, decoded, found, self.loc_encoder(decoded), again
        )  # fmt: skip

    def decode_boxes(self, states: jax.Array) -> jax.Array:
        """[... W] of <at> -> [... 4]."""
        return self.loc_decoder(states).astype(jnp.float32)

    def spliced(self, input_ids: jax.Array, features: Any, boxes: jax.Array | None) -> llama.Splice | None:
        """What puts pictures and boxes in their places, for the language model; features of `see`, or None."""
        pictures = None if features is None else self.splice(input_ids, features)
        if boxes is None:
            return pictures
        if boxes.ndim != 3 or boxes.shape[0] != input_ids.shape[0] or boxes.shape[2] != 4:
            raise ValueError(f"boxes must be [B K 4] with B={input_ids.shape[0]} rows, got {list(boxes.shape)}")
        places = partial(llava.put, at=input_ids == self.config.box_token, values=self.loc_encoder(boxes))
        return places if pictures is None else lambda x: places(pictures(x))

    def extend(
        self, input_ids: jax.Array, cache: KVCache, attention_mask: jax.Array | None = None,
        *, images: jax.Array | None = None, boxes: jax.Array | None = None,
    ) -> tuple[LMOutput, KVCache]:  # fmt: skip
        splice = self.spliced(input_ids, None if images is None else self.see(images), boxes)
        return self.language.extend(input_ids, cache, attention_mask, splice=splice)

    def follow(
        self, token: jax.Array, cache: KVCache, before: jax.Array, state: jax.Array
    ) -> tuple[LMOutput, KVCache]:  # fmt: skip
        """Reads one more token [B]; behind <at>, the box of its state is read in the token's place. before [B] and
        state [B W]: the token read last, and what the network thought there."""
        vector = self.loc_encoder(self.decode_boxes(state))[:, None]
        splice = partial(llava.put, at=(before == self.config.at_token)[:, None], values=vector)
        return self.language.extend(token[:, None], cache, splice=splice)


def said_places(model: NextChat, batch: dict) -> jax.Array:
    """[B K] bool, which of each row's K <at> are the assistant's."""
    spoken, exists = take(batch["spoken"], batch["input_ids"] == model.config.at_token, batch["boxes"].shape[1])
    return spoken & exists


def loss(model: NextChat, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """Stages 1 and 2. batch: as llava.loss, and boxes [B K 4], each row's in the order of its text, zeros behind."""
    return loss_of(model, variables, forward(model, variables, batch), batch)


def forward(model: NextChat, variables: dict, batch: dict) -> NextChatOutput:
    """The model on a batch of `loss`."""
    inputs = (batch.get(name) for name in ("images", "attention_mask", "positions", "segments"))
    return model.apply(variables, batch["input_ids"], *inputs, boxes=batch["boxes"])


def loss_of(
    model: NextChat, variables: dict, out: NextChatOutput, batch: dict, most: int | None = None
) -> tuple[jax.Array, Aux]:
    """The loss of what `forward` gave; most: as in llava.answer_loss."""
    c, ids, wanted = model.config, batch["input_ids"], batch["boxes"]
    labels = llava.labels_of(batch)
    labels = jnp.where(labels == c.box_token, IGNORED, labels)  # nobody needs to guess that <boxes> follows <at>
    text, _ = llava.answer_loss(model, variables, out.last_hidden_state, labels, most)

    learned = said_places(model, batch)
    given = jnp.arange(wanted.shape[1]) < (ids == c.box_token).sum(1, keepdims=True)
    parts = place_losses(out, wanted, learned, given)
    cycles = parts["cycle_states"] + parts["cycle_boxes"]
    total = text + c.l1_weight * parts["l1"] + c.giou_weight * parts["giou"] + c.cycle_weight * cycles
    shared = masked_mean(box_ops.iou(out.boxes, wanted), learned)
    return total, Aux({"loss": total, "text": text, **parts, "iou": shared})


# Answers


@struct.dataclass
class Located:
    """N new tokens of each row."""

    tokens: jax.Array  # [B N] int32; pad_id after the end
    lengths: jax.Array  # [B] int32, how many of them count
    boxes: jax.Array  # [B N 4] float32, where `found`
    found: jax.Array  # [B N] bool, tokens that are <at>
    states: jax.Array  # [B N W] of each token, where `found`: what masks are made of


def generate(
    model: NextChat,
    variables: dict,
    input_ids: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    rng: jax.Array | None = None,
    inputs: Mapping = EMPTY,
) -> Located:
    """As nn.sampling.generate, for prompts that don't end in <at>; inputs: images and, where the prompt has places,
    boxes [B K 4]."""
    if sampling.temperature > 0 and rng is None:
        raise ValueError(f"temperature {sampling.temperature} draws tokens at random; give rng=jax.random.key(...)")
    attention_mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
    rng = jax.random.key(0) if rng is None else rng  # greedy decoding draws nothing
    return _generate(model, variables, input_ids, attention_mask, rng, dict(inputs), max_new_tokens, sampling)


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "how"))
def _generate(model, variables, input_ids, attention_mask, rng, inputs, max_new_tokens, how) -> Located:
    c, batch_size = model.config, input_ids.shape[0]

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        state, before, thought = carry
        forced = (before == c.at_token) & ~state.done
        token, drawn = sampling.draw(state, key, how)
        token, state = (
            jnp.where(forced, c.box_token, token),
            drawn.replace(done=jnp.where(forced, state.done, drawn.done)),
        )
        out, cache = model.apply(variables, token, state.cache, before, thought, method="follow")
        thought = out.last_hidden_state[:, 0]
        return (state.replace(cache=cache, logits=out.logits[:, 0]), token, thought), (token, thought)

    room = input_ids.shape[1] + max_new_tokens
    state = sampling.prefill(model, variables, input_ids, attention_mask, room + room % 2, how, inputs)
    nothing = jnp.full(batch_size, -1, jnp.int32)
    thought = jnp.zeros((batch_size, c.language.width), c.language.compute.dtype)
    keys = jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(max_new_tokens))
    _, (tokens, states) = jax.lax.scan(step, (state, nothing, thought), keys)
    tokens, states = jnp.moveaxis(tokens, 0, 1), jnp.moveaxis(states, 0, 1)
    ends = jnp.isin(tokens, jnp.asarray(how.stop_ids, jnp.int32))
    lengths = jnp.where(ends.any(1), 1 + ends.argmax(1), max_new_tokens).astype(jnp.int32)
    boxes = model.apply(variables, states, method="decode_boxes")
    return Located(tokens, lengths, boxes, tokens == c.at_token, states)


# Masks: stage 3, in which SAM is asked by a box and by the state that it was decoded from


class NextChatSeg(NextChat):
    """SAM reads a picture of its own (`square_for_sam`)."""

    config: NextChatSegConfig

    def setup(self):
        super().setup()
        c, dtype = self.config, self.config.language.compute.dtype
        self.seg_prompt = TwoLayers(c.language.width, c.prompt_tokens * c.sam_config.dim, dtype, torch_linear)
        self.sam = sam.SAM(c.sam_config)

    def __call__(
        self, input_ids: jax.Array, images: jax.Array | None = None, attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None, segments: jax.Array | None = None, *, boxes: jax.Array | None = None,
    ) -> NextChatOutput:  # fmt: skip
        """As NextChat's."""
        out = super().__call__(input_ids, images, attention_mask, positions, segments, boxes=boxes)
        if self.is_initializing():
            side = self.config.sam_config.vision.image_size
            self.segment(jnp.zeros((1, side, side, 3)), out.states[:1], out.boxes[:1])
        return out

    def segment(self, images: jax.Array, states: jax.Array, boxes: jax.Array) -> sam.SamOutput:
        """images [B H H 3], uint8 or float already normalised, states [B K W], boxes [B K 4] in [0, 1] -> one mask for
        each of K. Four tokens of the state stand before the two corners of the box."""
        size = self.config.sam_config.vision.image_size
        own = self.seg_prompt(states).astype(jnp.float32)
        own = rearrange(own, "b k (t c) -> b k t c", t=self.config.prompt_tokens)
        corners = self.sam.encode_prompts(boxes=boxes * size)
        return self.sam.decode(self.sam.encode_image(images), jnp.concatenate([own, corners], 2), multimask=False)


def mask_losses(logits: jax.Array, scores: jax.Array, wanted: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """logits [B K h w], scores [B K], wanted [B K h w] bool or in [0, 1], mask [B K]: which of the K count.

    As the authors' code, which differs from SAM's losses: the focal factor is of a mask's mean cross entropy and not of
    each pixel's, the number of masks stands for its alpha and for the smoothing of dice, and for the score a pixel is
    inside from a logit of 0.5 on. All three are sums over masks, the last divided by their number.
    """
    count = jnp.maximum(mask.sum(), 1).astype(jnp.float32)
    # What doesn't count may be anything, and must not send NaN through the sums below.
    x, t = (jnp.where(mask[..., None, None], part, 0).astype(jnp.float32) for part in (logits, wanted))
    entropy = (jax.nn.softplus(x) - x * t).mean((-1, -2))
    inside = (x >= 0.5).astype(jnp.float32)
    both = (inside * t).sum((-1, -2))
    shared = both / (inside.sum((-1, -2)) + t.sum((-1, -2)) - both + 1e-7)
    parts = {
        "focal": count * (1 - jnp.exp(-entropy)) ** 2 * entropy,
        "dice": segmentation.dice(x, t, smooth=count),
        "iou_error": (scores.astype(jnp.float32) - shared) ** 2 / count,
    }
    return {name: jnp.where(mask, part, 0).sum() for name, part in parts.items()}


def mask_loss(
    model: NextChatSeg, variables: dict, batch: dict, rng: jax.Array, step: jax.Array
) -> tuple[jax.Array, Aux]:
    """Stage 3: masks alone. batch: as `loss`, sam_images [B H H 3] as in `segment`, and masks [B K h w] of the squares,
    one for each place."""
    wanted, learned = batch["masks"], said_places(model, batch)
    out = forward(model, variables, batch)
    found = model.apply(variables, batch["sam_images"], out.states, out.boxes, method="segment")
    logits = segmentation.resize(found.pred_masks[:, :, 0], *wanted.shape[-2:])
    parts = mask_losses(logits, found.iou_scores[:, :, 0], wanted, learned)
    total = 20 * parts["focal"] + parts["dice"] + parts["iou_error"]
    shared = masked_mean(segmentation.iou(logits > 0, wanted > 0.5), learned)
    return total, Aux({"loss": total, **parts, "iou": shared})


def square_for_sam(image: Any, size: int, mean: Any, std: Any) -> np.ndarray:
    """PIL image or uint8 array [H W 3] -> float32 [size size 3], as SAM's but in the middle of the square: a box in
    [0, 1] is then the same for both towers."""
    image = image_ops.to_pil(image)
    height, width = image_ops.longest_side(image.height, image.width, size)
    at = image_ops.frame(width, height)
    return np.roll(image_ops.fit_longest_side(image, size, mean, std), (at.top, at.left), (0, 1))


def to_picture(logits: jax.Array, height: int, width: int) -> jax.Array:
    """[... h w] of the square -> [... height width] of the picture; above 0 is inside."""
    at = image_ops.frame(width, height)
    whole = segmentation.resize(logits, at.side, at.side)
    return whole[..., at.top : at.top + height, at.left : at.left + width]
