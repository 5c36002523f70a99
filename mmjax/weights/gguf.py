"""GGUF: llama.cpp's single file of a model, with its sizes, its vocabulary and its tensors, mostly quantised.

    model, variables = load_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")     the LLaMA family, dequantised
    language = load_language("SmolLM2-135M-Instruct.Q4_1.gguf")         its tokenizer, chat template and stop ids

A matrix lies there as in torch, (out, in), but the rows of queries and keys pair neighbours in the rotation, where ours
pair halves (ops/rope.py). Names: llama.cpp's gguf-py/gguf/constants.py; the container is in gguf_file.py.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import llama
from mmjax.ops import rope
from mmjax.text import language
from mmjax.weights import engine, gguf_file
from mmjax.weights.engine import TRANSPOSE, Rule, Transform
from mmjax.weights.fields import Fields
from mmjax.weights.gguf_file import File

ARCHITECTURE = "llama"
IGNORED = (r"^rope_freqs\.weight$",)  # read as part of the sizes


def load_gguf(
    path: str | Path, *, dtype: Any = jnp.float32, shardings: engine.Shardings | None = None
) -> tuple[llama.Llama, dict]:
    """The model of a local file and its variables. dtype and shardings: as in load_hf."""
    file = read(path)
    model = llama.Llama(config(file))
    variables = engine.load_model(
        model, abstract, rules(model.config), file.tensors, format="a LLaMA of its own metadata", source=file.path,
        dtype=dtype, shardings=shardings, ignored=IGNORED, resize=None,
    )[1]  # fmt: skip
    return model, variables


def load_language(path: str | Path) -> language.Language:
    """How the model of a local file reads and writes."""
    file = read(path)
    return language.from_gguf(file.metadata, str(file.path))


def read(path: str | Path) -> File:
    """The file of a LLaMA, or an error that says what it is instead."""
    file = gguf_file.read(path)
    path, metadata = file.path, file.metadata
    found = metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise ValueError(f"{path} holds a model of the architecture {found!r}, supported is {ARCHITECTURE!r} only")
    if metadata.get(f"{ARCHITECTURE}.expert_count", 0):
        raise ValueError(f"{path} holds a mixture of experts, supported are models with one MLP a layer")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(f"{path} is one of {metadata['split.count']} parts; join them with llama-gguf-split --merge")
    return file


def config(file: File) -> llama.LlamaConfig:
    """The sizes; an absent field has the value that llama.cpp gives it."""
    prefix = f"{ARCHITECTURE}."
    named = {name.removeprefix(prefix): x for name, x in file.metadata.items() if name.startswith(prefix)}
    fields = Fields(named, f"{file.path}: {ARCHITECTURE}")
    width, num_heads = fields.get("embedding_length", int), fields.get("attention.head_count", int)
    head_dim = fields.get("attention.key_length", int, width // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.get(name, int, head_dim) != head_dim:
            raise ValueError(
                f"{fields.where}: {name} is {fields.get(name, int)}, supported is the width of a head, {head_dim}"
            )
    return llama.LlamaConfig(
        vocab_size=_vocab_size(file, fields),
        length=fields.get("context_length", int),
        width=width,
        depth=fields.get("block_count", int),
        num_heads=num_heads,
        num_kv_heads=fields.get("attention.head_count_kv", int, num_heads),
        head_dim=head_dim,
        hidden=fields.get("feed_forward_length", int),
        theta=fields.get("rope.freq_base", float, 10_000.0),
        scaling=_scaling(file, fields),
        epsilon=fields.get("attention.layer_norm_rms_epsilon", float),
        window=fields.get("attention.sliding_window", int, None),
        tied="output.weight" not in file.tensors,
        use_bias="blk.0.attn_q.bias" in file.tensors,
    )


def _vocab_size(file: File, fields: Fields) -> int:
    """Rows of the embeddings; the vocabulary of the file must not be another."""
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path} has no token_embd.weight; it is not a whole model")
    rows = file.tensors["token_embd.weight"].shape[0]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    for found, what in ((fields.get("vocab_size", int, rows), "vocab_size"), (tokens and len(tokens), "token list")):
        if found not in (None, rows):
            raise ValueError(
                f"{file.path}: its embeddings are for {rows} tokens, its {what} says {found}; convert it again"
            )
    return rows


@dataclasses.dataclass(frozen=True)
class Factors:
    """What each rotary frequency is divided by: Llama 3's scaling, as llama.cpp's converter computes it once."""

    values: tuple[float, ...]  # [D/2]

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / np.asarray(self.values, np.float32)


def _scaling(file: File, fields: Fields) -> Any:
    kind = fields.get("rope.scaling.type", str, "none")
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{fields.where}: rope.scaling.type is {kind!r}, supported are none, linear and rope_freqs.weight"
        )
    if "rope_freqs.weight" in file.tensors:
        return Factors(tuple(file.tensors["rope_freqs.weight"][:].tolist()))
    return rope.Linear(fields.get("rope.scaling.factor", float)) if kind == "linear" else None


def rules(c: llama.LlamaConfig) -> list[Rule]:
    turned = Transform(  # (out, in) with neighbours in pairs <-> (in, out) with halves in pairs
        lambda x: rope.to_halves(x.T, c.head_dim), lambda x: rope.to_neighbours(x, c.head_dim).T
    )
    layer = "blk.{i}"
    kernels = [
        ("attention/query", "attn_q", turned), ("attention/key", "attn_k", turned),
        ("attention/value", "attn_v", TRANSPOSE), ("attention/out", "attn_output", TRANSPOSE),
        ("mlp/gate", "ffn_gate", TRANSPOSE), ("mlp/up", "ffn_up", TRANSPOSE), ("mlp/down", "ffn_down", TRANSPOSE),
    ]  # fmt: skip
    out = [
        Rule("embed/embedding", "token_embd.weight"),
        Rule("layers/norm1/scale", f"{layer}.attn_norm.weight"),
        Rule("layers/norm2/scale", f"{layer}.ffn_norm.weight"),
        Rule("norm/scale", "output_norm.weight"),
        *(Rule(f"layers/{ours}/kernel", f"{layer}.{theirs}.weight", transform) for ours, theirs, transform in kernels),
    ]
    if c.use_bias:
        out += [
            Rule(f"layers/{ours}/bias", f"{layer}.{theirs}.bias", engine.SAME if transform is TRANSPOSE else turned)
            for ours, theirs, transform in kernels[:4]
        ]
    return out if c.tied else [*out, Rule("head/kernel", "output.weight", TRANSPOSE)]


def abstract(model: llama.Llama) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
