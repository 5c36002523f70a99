"""Small GGUF files, written by the gguf package from parameters of ours; shares no code with mmjax.weights.gguf."""

import gguf
import jax
import numpy as np
from tokenizers import pre_tokenizers

from mmjax.models import llama

KINDS = gguf.GGMLQuantizationType
MERGES = ["H e", "l l", "He ll", "Hell o"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sizes(**changes) -> llama.LlamaConfig:
    """Rows of whole blocks of 32; the branches of a LLaMA that differ: shared key heads, a head of its own."""
    fields = {"width": 64, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "hidden": 96}
    return llama.LlamaConfig(**{"vocab_size": 40, "length": 32, "theta": 500.0, "epsilon": 1e-5} | fields | changes)


def random_parameters(c: llama.LlamaConfig, scale: float, seed: int = 0) -> dict:
    """Scales of norms around 1, everything else around 0; no array as it starts."""
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = jax.eval_shape(llama.Llama(c).init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(seed)

    def one(path, x):
        return (scale * rng.normal(size=x.shape) + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf: rows of q or k, (out, in)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(c: llama.LlamaConfig, params: dict) -> dict[str, np.ndarray]:
    """Their names, (out, in)."""
    out = {"token_embd.weight": params["embed"]["embedding"], "output_norm.weight": params["norm"]["scale"]}
    if not c.tied:
        out["output.weight"] = params["head"]["kernel"].T
    for i in range(c.depth):
        layer, name = params["layers"], f"blk.{i}"
        attention, mlp = layer["attention"], layer["mlp"]
        out[f"{name}.attn_norm.weight"] = layer["norm1"]["scale"][i]
        out[f"{name}.ffn_norm.weight"] = layer["norm2"]["scale"][i]
        out[f"{name}.attn_q.weight"] = interleaved(attention["query"]["kernel"][i].T, c.num_heads)
        out[f"{name}.attn_k.weight"] = interleaved(attention["key"]["kernel"][i].T, c.num_kv_heads)
        out[f"{name}.attn_v.weight"] = attention["value"]["kernel"][i].T
        out[f"{name}.attn_output.weight"] = attention["out"]["kernel"][i].T
        for ours, theirs in (("gate", "ffn_gate"), ("up", "ffn_up"), ("down", "ffn_down")):
            out[f"{name}.{theirs}.weight"] = mlp[ours]["kernel"][i].T
    return {name: np.ascontiguousarray(x, np.float32) for name, x in out.items()}


def write(
    path, c: llama.LlamaConfig, arrays: dict[str, np.ndarray], kind=KINDS.F32, *, architecture="llama", change=None
) -> None:
    """Matrices as `kind`, vectors in float32. change: a function of the writer, for more fields, or other ones."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.length)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.depth)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_layer_norm_rms_eps(c.epsilon)
    writer.add_rope_freq_base(c.theta)
    writer.add_rope_dimension_count(c.head_dim)
    if change is not None:
        change(writer)
    for name, x in arrays.items():
        stored = kind if x.ndim == 2 else KINDS.F32
        writer.add_tensor(name, gguf.quants.quantize(x, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_vocabulary(count: int) -> list[str]:
    """The 256 bytes as GPT-2 spells them, a few merges, ChatML's two, then what fills up to `count`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join(pair.split()) for pair in MERGES), "<|im_start|>", "<|im_end|>"]
    return [*tokens, *(f"[unused{i}]" for i in range(count - len(tokens)))]


def add_vocabulary(writer, count: int = 262, template: str | None = CHATML) -> None:
    tokens = byte_vocabulary(count)
    special = [gguf.TokenType.CONTROL if "<|" in token else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(special)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    if template is not None:
        writer.add_chat_template(template)
