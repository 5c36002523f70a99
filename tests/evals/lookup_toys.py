"""A model that is a table and data that says which row is meant, so that a test decides each embedding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.data import pipeline


class Lookup(nn.Module):
    """An image's first two pixel values are its row (high byte, low byte); a text's first token is its row."""

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B 1 1 3] uint8 -> [B E]
        row = images[:, 0, 0, 0].astype(jnp.int32) * 256 + images[:, 0, 0, 1]
        return self.get_variable("params", "image")[row]

    def encode_text(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:  # [B T] -> [B E]
        return jnp.where(attention_mask[:, :1], self.get_variable("params", "text")[input_ids[:, 0]], jnp.nan)


def variables(image, text) -> dict:
    """image [N E] and text [V E]: the embeddings that come out."""
    return {"params": {"image": jnp.asarray(image, jnp.float32), "text": jnp.asarray(text, jnp.float32)}}


def pictures(rows) -> np.ndarray:  # [N] -> [N 1 1 3] uint8
    rows = np.asarray(rows)
    return np.stack([rows // 256, rows % 256, 0 * rows], -1).astype(np.uint8)[:, None, None]


@dataclasses.dataclass(frozen=True)
class Split:
    rows: tuple[int, ...]  # of the image table
    labels: tuple[int, ...]  # index of each image's name
    groups: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
    names: tuple[str, ...]
    splits: dict[str, Split]
    group_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()  # text -> row of the text table; the names where empty

    def pairs(self, split: str) -> pipeline.Pairs:
        rows, labels, _ = dataclasses.astuple(self.splits[split])
        names = [self.names[label] for label in labels]
        return pipeline.Pairs(pictures(rows), names, np.array(labels, np.int32), self.names)

    def groups(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return np.array(self.splits[split].groups, np.int32), self.group_names

    def tokenize(self, texts) -> dict[str, np.ndarray]:
        row = {text: i for i, text in enumerate(self.vocabulary or self.names)}
        ids = np.array([[row[text], 0] for text in texts], np.int32)
        return {"input_ids": ids, "attention_mask": np.tile([True, False], (len(ids), 1))}
