"""Mamba-2 as transformers' Mamba2ForCausalLM keeps it, and as its authors do (state-spaces/mamba2-130m and larger)."""

from mmjax.models import mamba2
from mmjax.weights import mamba
from mmjax.weights.engine import TRANSPOSE, Rule
from mmjax.weights.fields import Fields
from mmjax.weights.mamba import DEPTHWISE, MIXER, PREFIX

MODEL = mamba2.Mamba2
FORMAT = "transformers' Mamba2ForCausalLM"
renamed, abstract = mamba.renamed, mamba.abstract
NO_LIMITS = (None, [0.0, float("inf")], [0.0, {"__float__": "Infinity"}], [0.0, None])  # as transformers has written it


def RULES(model: mamba2.Mamba2) -> list[Rule]:
    ours = "layers/mixer"
    return [
        Rule("embed/embedding", f"{PREFIX}embeddings.weight"),
        Rule("layers/norm/scale", f"{PREFIX}layers.{{i}}.norm.weight"),
        Rule(
            (f"{ours}/gate/kernel", f"{ours}/up/kernel", f"{ours}/select/kernel"), f"{MIXER}in_proj.weight", TRANSPOSE
        ),
        Rule((f"{ours}/conv/kernel", f"{ours}/conv_select/kernel"), f"{MIXER}conv1d.weight", DEPTHWISE),
        Rule((f"{ours}/conv/bias", f"{ours}/conv_select/bias"), f"{MIXER}conv1d.bias"),
        Rule(f"{ours}/delta_bias", f"{MIXER}dt_bias"),
        Rule(f"{ours}/A_log", f"{MIXER}A_log"),
        Rule(f"{ours}/D", f"{MIXER}D"),
        Rule(f"{ours}/norm/scale", f"{MIXER}norm.weight"),
        Rule(f"{ours}/down/kernel", f"{MIXER}out_proj.weight", TRANSPOSE),
        Rule("norm/scale", f"{PREFIX}norm_f.weight"),
        *([] if model.config.tied else [Rule("head/kernel", "lm_head.weight", TRANSPOSE)]),
    ]


def IGNORED(model: mamba2.Mamba2) -> tuple[str, ...]:
    """The copy of the table that a tied head is."""
    return mamba.IGNORED if model.config.tied else ()


def from_config(config: Fields) -> mamba2.Mamba2:
    """config.json; an absent field has the value that transformers 5, or the authors' code, gives it."""
    mamba.check(config)
    limits = config.values.get("time_step_limit")
    if (list(limits) if isinstance(limits, (list, tuple)) else limits) not in NO_LIMITS:
        raise ValueError(f"{config.where}: time_step_limit is {limits}, supported is none, [0.0, Infinity], only")
    if "model_type" not in config.values:
        return mamba2.Mamba2(_authors(config))
    width, heads = config.get("hidden_size", int, 4096), config.get("num_heads", int, 128)
    head_dim, expand = config.get("head_dim", int, 64), config.get("expand", int, 2)
    if heads * head_dim != expand * width:
        raise ValueError(
            f"{config.where}: num_heads * head_dim must be expand * hidden_size, got {heads} * {head_dim} and "
            f"{expand} * {width}"
        )
    return mamba2.Mamba2(
        mamba2.Mamba2Config(
            vocab_size=config.get("vocab_size", int, 32_768),
            width=width,
            depth=config.get("num_hidden_layers", int, 64),
            heads=heads,
            head_dim=head_dim,
            groups=config.get("n_groups", int, 8),
            state=config.get("state_size", int, 128),
            taps=config.get("conv_kernel", int, 4),
            epsilon=config.get("layer_norm_epsilon", float, 1e-5),
            tied=config.get("tie_word_embeddings", bool, False),
        )
    )


def _authors(config: Fields) -> mamba2.Mamba2Config:
    inner, width = config.part("ssm_cfg"), config.get("d_model", int)
    head_dim = inner.get("headdim", int, 64)
    return mamba2.Mamba2Config(
        mamba.padded_vocabulary(config, 16), width, config.get("n_layer", int),
        inner.get("expand", int, 2) * width // head_dim, head_dim, inner.get("ngroups", int, 1),
        inner.get("d_state", int, 128), inner.get("d_conv", int, 4), tied=config.get("tie_embeddings", bool, True),
    )  # fmt: skip


def to_config(model: mamba2.Mamba2) -> dict:
    c = model.config
    if c.inner % c.width:
        raise ValueError(
            f"transformers' Mamba2 wants heads * head_dim = {c.inner} to be a multiple of width = {c.width}"
        )
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "expand": c.inner // c.width,
        "num_heads": c.heads,
        "head_dim": c.head_dim,
        "n_groups": c.groups,
        "state_size": c.state,
        "conv_kernel": c.taps,
        "layer_norm_epsilon": c.epsilon,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": c.tied,
    }
