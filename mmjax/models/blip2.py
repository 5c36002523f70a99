"""BLIP-2, stage 2: what the Q-Former's queries found stands before the words of a language model.

Source: Li et al. 2023, arXiv:2301.12597, section 3.3 and figure 3; salesforce/LAVIS, blip2_models/blip2_opt.py.

    images [I H W 3] -frozen ViT, norm-> [I S C] -queries-> [I Q D] -projector-> [I Q W] -> in the place of Q words

I pictures, S tokens of a picture, C their width, Q queries, D their width, W width of the language model.

It is LLaVA with other eyes: `llava.Llava` does the rest, its loss (`llava.loss`), and captions through nn/sampling.py
with the picture in the cache. Trained are queries, Q-Former, the norm after the tower and the projector; tower and
language model stay as they are. The paper's language models are OPT and FlanT5; here it is a LLaMA, as in InstructBLIP
(arXiv:2305.06500), whose Q-Former also reads the question, as this one does not.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models import llama, llava, vit
from mmjax.models.qformer import QFormer, QFormerConfig, RetrievalConfig, vit_g
from mmjax.nn.stack import Compute

TRAINABLE = r"^projector/|^vision/(query_tokens|qformer/|tower/norm/)"  # Task.trainable
FOR_TEXT = ("text_mlp", "text_norm")  # parts of a block that only texts go through


class Eyes(nn.Module):
    """What the queries find in a picture."""

    config: llava.LlavaConfig
    qformer_config: QFormerConfig

    def setup(self):
        c, q = self.config, self.qformer_config
        self.tower, self.qformer = vit.ViT(c.vision, c.compute), QFormer(q)
        self.query_tokens = self.param("query_tokens", nn.initializers.normal(0.02), (q.queries, q.width))

    def __call__(self, images: jax.Array) -> jax.Array:  # [I H W 3] uint8, or float already normalised -> [I Q D]
        states = self.tower(images).last_hidden_state
        return self.qformer(
            jnp.broadcast_to(self.query_tokens, (len(states), *self.query_tokens.shape)), states
        ).queries


@dataclasses.dataclass(frozen=True)
class Ask:
    """For LlavaConfig.see."""

    qformer: QFormerConfig

    def __call__(self, config: llava.LlavaConfig) -> nn.Module:
        return Eyes(config, self.qformer)


def blip2(
    vision: vit.ViTConfig, qformer: QFormerConfig, language: llama.LlamaConfig, image_token: int
) -> llava.LlavaConfig:
    """vision and qformer: of stage 1; texts no longer go through them. image_token: id that stands Q times where a
    picture does."""
    RetrievalConfig(vision, qformer)  # refuses what does not fit
    return llava.LlavaConfig(
        vision, language, image_token, layers=(-1,), see=Ask(dataclasses.replace(qformer, text=False)),
        projector=llava.linear, image_length=qformer.queries, image_mean=vision.image_mean, image_std=vision.image_std,
    )  # fmt: skip


def tiny() -> llava.LlavaConfig:
    return blip2(vit.ViTConfig.tiny(), QFormerConfig.tiny(), llama.LlamaConfig.tiny(), image_token=63)


def of_size(size: str, vision: vit.ViTConfig, vocab_size: int, start_id: int, compute: Compute) -> RetrievalConfig:
    """Stage 1 of what experiments on scenes train, tiny and small: not published, captions of at most 16 tokens."""
    width, depth, num_heads = {"tiny": (16, 2, 2), "small": (96, 4, 3)}[size]
    queries = QFormerConfig(
        16, vision.width, vocab_size, 16, width, depth, num_heads, 2 * width, start_id=start_id, dropout=0.0,
        compute=compute,
    )  # fmt: skip
    return RetrievalConfig(vision, queries, embed_dim=64, compute=compute)


def vit_g_llama_7b() -> llava.LlavaConfig:  # the published eyes; the table has one more row, for image_token
    return blip2(vit_g().vision, QFormerConfig(), dataclasses.replace(llama.llama_7b(), vocab_size=32_001), 32_000)


class Blip2(llava.Llava):
    """Called as a Llava, whose `config` is one of this file's."""


def eyes_of(params: dict) -> dict:
    """From stage 1's parameters those of `vision` here, as new buffers."""

    def kept(tree: dict) -> dict:
        return {
            name: kept(x) if isinstance(x, dict) else jnp.array(x) for name, x in tree.items() if name not in FOR_TEXT
        }

    return kept({"tower": params["vision"], "qformer": params["qformer"], "query_tokens": params["query_tokens"]})
