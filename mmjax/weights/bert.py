"""BERT as transformers keeps it: BertModel and four of its heads, under today's names and those of 2018."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.models import bert
from mmjax.nn.mlp import gelu, gelu_tanh
from mmjax.weights.engine import Rule, linear, norm
from mmjax.weights.fields import Fields

FORMAT = "transformers' BERT"
CLASSES = {  # by `architectures` of config.json
    "BertModel": bert.BERT,
    "BertForPreTraining": bert.BERTForPreTraining,
    "BertForMaskedLM": bert.BERTForMaskedLM,
    "BertForSequenceClassification": bert.BERTForClassification,
    "BertForTokenClassification": bert.BERTForTagging,
}
MODEL = tuple(CLASSES.values())
LABELLED = (bert.BERTForClassification, bert.BERTForTagging)
WITHOUT_POOLER = (bert.BERTForMaskedLM, bert.BERTForTagging)
ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh}  # the first name is written

HEADS = {
    bert.BERT: [],
    bert.BERTForPreTraining: linear("nsp", "cls.seq_relationship"),
    bert.BERTForMaskedLM: [],
    bert.BERTForClassification: linear("head", "classifier"),
    bert.BERTForTagging: linear("head", "classifier"),
}
MLM = [
    *linear("mlm/transform", "cls.predictions.transform.dense"),
    *norm("mlm/norm", "cls.predictions.transform.LayerNorm"),
    Rule("mlm/bias", "cls.predictions.bias"),
]


def RULES(model: nn.Module) -> list[Rule]:
    bare = isinstance(model, bert.BERT)
    ours, theirs = ("", "") if bare else ("bert/", "bert.")
    layer, attention = f"{theirs}encoder.layer.{{i}}", f"{theirs}encoder.layer.{{i}}.attention"
    encoder = [
        Rule(f"{ours}embed/embedding", f"{theirs}embeddings.word_embeddings.weight"),
        Rule(f"{ours}pos_embed", f"{theirs}embeddings.position_embeddings.weight"),
        Rule(f"{ours}type_embed", f"{theirs}embeddings.token_type_embeddings.weight"),
        *norm(f"{ours}norm", f"{theirs}embeddings.LayerNorm"),
        *linear(f"{ours}layers/attention/query", f"{attention}.self.query"),
        *linear(f"{ours}layers/attention/key", f"{attention}.self.key"),
        *linear(f"{ours}layers/attention/value", f"{attention}.self.value"),
        *linear(f"{ours}layers/attention/out", f"{attention}.output.dense"),
        *norm(f"{ours}layers/norm1", f"{attention}.output.LayerNorm"),
        *linear(f"{ours}layers/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{ours}layers/mlp/down", f"{layer}.output.dense"),
        *norm(f"{ours}layers/norm2", f"{layer}.output.LayerNorm"),
    ]
    pooler = [] if isinstance(model, WITHOUT_POOLER) else linear(f"{ours}pooler", f"{theirs}pooler.dense")
    mlm = MLM if isinstance(model, bert.BERTForPreTraining | bert.BERTForMaskedLM) else []
    return [*encoder, *pooler, *mlm, *HEADS[type(model)]]


def IGNORED(model: nn.Module) -> tuple[str, ...]:
    """What no weight of this class is, and what its class in transformers leaves out of a file with more heads."""
    always = (r"embeddings\.position_ids$", r"^cls\.predictions\.decoder\.")  # 0, 1, 2 ...; copies of table and bias
    if isinstance(model, bert.BERT | bert.BERTForClassification):
        return (*always, r"^cls\.")
    if isinstance(model, bert.BERTForMaskedLM):
        return (*always, r"^cls\.seq_relationship\.", r"^bert\.pooler\.")
    return (*always, r"^cls\.", r"^bert\.pooler\.") if isinstance(model, bert.BERTForTagging) else always


def renamed(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """gamma and beta of files converted from TensorFlow; the prefix of a file with heads that is read as BertModel."""

    def current(name: str) -> str:
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        return name.removeprefix("bert.") if isinstance(model, bert.BERT) else name

    return {current(name): tensor for name, tensor in tensors.items()}


def from_config(config: Fields) -> nn.Module:
    """config.json; an absent field has the value that transformers 5 gives it."""
    for name, only in {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute",
                       "tie_word_embeddings": True}.items():  # fmt: skip
        if (value := config.values.get(name, only)) != only:
            raise ValueError(f"{config.where}: {name} is {value!r}, supported is {only!r} only")
    architectures = config.values.get("architectures") or ["BertModel"]
    if not isinstance(architectures, list) or architectures[0] not in CLASSES:
        raise ValueError(f"{config.where}: architectures is {architectures!r}, supported are {', '.join(CLASSES)}")
    model = CLASSES[architectures[0]]
    sizes = bert.BERTConfig(
        vocab_size=config.get("vocab_size", int, 30522),
        length=config.get("max_position_embeddings", int, 512),
        types=config.get("type_vocab_size", int, 2),
        width=config.get("hidden_size", int, 768),
        depth=config.get("num_hidden_layers", int, 12),
        num_heads=config.get("num_attention_heads", int, 12),
        hidden=config.get("intermediate_size", int, 3072),
        activation=config.one_of("hidden_act", ACTIVATIONS, "gelu"),
        epsilon=config.get("layer_norm_eps", float, 1e-12),
        dropout=config.get("hidden_dropout_prob", float, 0.1),
    )
    return model(sizes, config.labels()) if model in LABELLED else model(sizes)


def to_config(model: nn.Module) -> dict:
    c = model.config
    activation = next((name for name, function in ACTIVATIONS.items() if function is c.activation), None)
    if activation is None:
        raise ValueError(f"activation {c.activation} has no name here; supported are {', '.join(ACTIVATIONS)}")
    if isinstance(model, bert.BERT) and not model.pooled:
        raise ValueError(f"{FORMAT} has a pooler in BertModel; use BERT(config, pooled=True)")
    labels = {str(i): name for i, name in enumerate(model.labels)} if isinstance(model, LABELLED) else {}
    return {
        "architectures": [next(name for name, one in CLASSES.items() if one is type(model))],
        "model_type": "bert",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.length,
        "type_vocab_size": c.types,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.hidden,
        "hidden_act": activation,
        "layer_norm_eps": c.epsilon,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "pad_token_id": 0,
        **({"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}} if labels else {}),
    }


def abstract(model: nn.Module) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))
