"""SEED as AILab-CVC/SEED keeps it, both ways: `seed_quantizer.pt` of SEED-2 and its stage 1, by the names of LAVIS.

The released file goes with heads of `seed.Down`; one of the released training, with `seed.Reverse`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import seed, vit
from mmjax.models.qformer import QFormerConfig, RetrievalConfig
from mmjax.weights import engine, files
from mmjax.weights.blip2 import qformer_rules
from mmjax.weights.engine import CONV, TRANSPOSE, Rule, linear, norm
from mmjax.weights.vit import ROW, TOKEN

FORMAT = "AILab-CVC/SEED"
QKV = ("query", "key", "value")
IGNORED = (  # BERT's head and what numbers positions; networks that stand beside the tokenizer in training
    r"^Qformer\.cls\.", r"\.embeddings\.position_ids$", r"^(clip_model|text_encoder)\."
)  # fmt: skip
RENAMED = {  # transformers' names of a Q-Former's parts -> LAVIS's
    ".layernorm": ".embeddings.LayerNorm",
    ".attention.attention.": ".attention.self.",
    ".crossattention.attention.": ".crossattention.self.",
}


def _block(ours: str, theirs: str, biases: list[Rule]) -> list[Rule]:
    return [
        *norm(f"{ours}/norm1", f"{theirs}.norm1"),
        Rule(tuple(f"{ours}/attention/{name}/kernel" for name in QKV), f"{theirs}.attn.qkv.weight", TRANSPOSE),
        *biases,
        *linear(f"{ours}/attention/out", f"{theirs}.attn.proj"),
        *norm(f"{ours}/norm2", f"{theirs}.norm2"),
        *linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]


def _vision(c: vit.ViTConfig) -> list[Rule]:
    layers, blocks, tower = "vision/layers", "visual_encoder.blocks.{i}", "visual_encoder"
    letters = dict(zip(QKV, "qkv", strict=True))
    biases = [Rule(f"{layers}/attention/{x}/bias", f"{blocks}.attn.{letters[x]}_bias") for x in QKV if c.qkv_bias]
    return [
        Rule("vision/patch_embed/kernel", f"{tower}.patch_embed.proj.weight", CONV),
        Rule("vision/patch_embed/bias", f"{tower}.patch_embed.proj.bias"),
        Rule("vision/class_embed", f"{tower}.cls_token", TOKEN),
        Rule("vision/pos_embed", f"{tower}.pos_embed", ROW),
        *_block(layers, blocks, biases),
        *norm("vision/norm", "ln_vision"),
    ]


def _qformer(ours: str, theirs: str, c: QFormerConfig) -> list[Rule]:
    def renamed(name: str) -> str:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        return f"{theirs}{name}"

    rules = qformer_rules(f"{ours}/", ".", c)
    return [dataclasses.replace(rule, theirs=renamed(rule.theirs)) for rule in rules]


def _stage1(c: RetrievalConfig) -> list[Rule]:
    return [
        *_vision(c.vision),
        Rule("query_tokens", "query_tokens", ROW),
        Rule("embed/embedding", "Qformer.bert.embeddings.word_embeddings.weight"),
        Rule("pos_embed", "Qformer.bert.embeddings.position_embeddings.weight"),
        *_qformer("qformer", "Qformer.bert", c.qformer),
        *linear("vision_projection", "vision_proj"),
        *linear("text_projection", "text_proj"),
        Rule("temperature", "temp"),
    ]


def _mlp(ours: str, theirs: str) -> list[Rule]:
    return linear(f"{ours}/up", f"{theirs}.0") + linear(f"{ours}/down", f"{theirs}.2")


def _decoder(ours: str, tail: str) -> list[Rule]:
    """tail: of their names of the branch."""
    layers, blocks = f"{ours}/layers", f"blocks{tail}.{{i}}"
    biases = [Rule(tuple(f"{layers}/attention/{name}/bias" for name in QKV), f"{blocks}.attn.qkv.bias")]
    return [Rule(f"{ours}/pos_embed", f"pos_embed{tail}", ROW), *_block(layers, blocks, biases)]


def _head(ours: str, make: Callable, q: QFormerConfig, kind: str, tail: str) -> list[Rule]:
    """kind: what it says, image or text; tail: of their names."""
    head = make(q, 1)
    last = linear(f"{ours}/out", f"distill_{kind}_proj")
    if isinstance(head, seed.Down):
        down = f"{kind}_down"
        return [
            Rule(f"{ours}/down{i}/kernel", f"{down}.{2 * i}.weight", TRANSPOSE) for i in range(len(head.sizes))
        ] + last
    if not isinstance(head, seed.Reverse):
        raise ValueError(f"{FORMAT} has heads of seed.Down and seed.Reverse, got {type(head).__name__}")
    c = head.sizes()
    tokens = Rule(f"{ours}/query_tokens", f"reverse_tokens{tail}", ROW)
    return [tokens, *_qformer(f"{ours}/qformer", f"Reverse_Qformer{tail}.bert", c), *last]


def RULES(model: seed.Stage1 | seed.Seed) -> list[Rule]:
    c = model.config
    if isinstance(model, seed.Stage1):
        return _stage1(c)
    q = dataclasses.replace(c.qformer, text=False)
    rules = [
        *_vision(c.vision),
        Rule("query_tokens", "query_tokens", ROW),
        *_qformer("qformer", "Qformer.bert", q),
        Rule("quantizer/codes", "quantize.embedding.weight"),
        *_mlp("encode_mlp", "encode_task_layer"),
        *_mlp("decode_mlp", "decode_task_layer"),
        *_decoder("reconstruct", ""),
        *_decoder("image_decoder", "_image"),
        *_head("image_head", c.image_head, q, "image", ""),
    ]
    if c.text_head is not None:
        rules += [*_decoder("text_decoder", "_text"), *_head("text_head", c.text_head, q, "text", "_text")]
    return rules


def abstract(model: seed.Stage1 | seed.Seed) -> dict:
    """The variables' shapes."""
    side = model.config.vision.image_size
    images, ids = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    args = (images, ids) if isinstance(model, seed.Stage1) else (images,)
    return jax.eval_shape(model.init, jax.random.key(0), *args)


def load(model: seed.Stage1 | seed.Seed, tensors: Mapping[str, np.ndarray], *, source: str = "tensors") -> dict:
    """The variables of `model`; without those of a target, which the file doesn't hold."""
    # EVA's keys have no bias.
    none = {
        name.replace(".q_bias", ".k_bias"): np.zeros_like(x) for name, x in tensors.items() if name.endswith(".q_bias")
    }
    target = abstract(model)["params"]
    params = engine.load(
        RULES(model), {**tensors, **none}, target, format=FORMAT, source=source, ignored=IGNORED
    )  # fmt: skip
    return {"params": params}


def save(model: seed.Stage1 | seed.Seed, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name."""
    tensors = engine.save(RULES(model), variables["params"], format=FORMAT)
    # A bias of keys adds the same to all scores of a query, which softmax does not see.
    return {name: x for name, x in tensors.items() if not name.endswith(".k_bias")}


def load_seed(path: str | Path, config: seed.SeedConfig | None = None) -> tuple[seed.Seed, dict]:
    """The tokenizer of seed_quantizer.pt, or of a safetensors file of the same names, and its variables. No tensor
    tells the numbers of heads, so another size than the published one needs its config."""
    model = seed.Seed(seed.seed_tokenizer() if config is None else config)
    tensors = files.read(Path(path))
    if tensors and all(name.startswith("model.") for name in tensors):  # a checkpoint of LAVIS's trainer
        tensors = {name.removeprefix("model."): x for name, x in tensors.items()}
    return model, load(model, tensors, source=str(path))
