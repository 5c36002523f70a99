"""Rules of nn/seanet.py in the names of transformers, whose layers are one list; EnCodec's and Mimi's alike."""

from einops import rearrange

from mmjax.nn.seanet import SEANetConfig
from mmjax.weights.engine import TRANSPOSE, Rule, Transform

CONV = Transform(lambda x: rearrange(x, "o i k -> k i o"), lambda x: rearrange(x, "k i o -> o i k"))
UP = Transform(lambda x: rearrange(x, "i o k -> k i o"), lambda x: rearrange(x, "k i o -> i o k"))  # transposed
POINT = Transform(lambda x: rearrange(x, "o i 1 -> i o"), lambda x: rearrange(x, "i o -> o i 1"))  # of one sample
PADDING = {"reflect": "reflect", "constant": "constant", "replicate": "edge"}  # theirs: a mode of jnp.pad


def encoder(c: SEANetConfig) -> list[Rule]:
    """Of "encoder/..." and "encoder.layers. ..."; activations count as layers there."""
    rules, at = _conv("encoder/conv_in", "encoder.layers.0.conv"), 1
    for i in range(len(c.ratios)):
        for j in range(c.blocks):
            rules += _unit(c, f"encoder/stage{i}_unit{j}", f"encoder.layers.{at + j}")
        at += c.blocks + 1
        rules += _conv(f"encoder/stage{i}_down", f"encoder.layers.{at}.conv")
        at += 1
    if c.lstm:
        rules += _lstm("encoder/lstm/layers", f"encoder.layers.{at}.lstm")
        at += 1
    return rules + _conv("encoder/conv_out", f"encoder.layers.{at + 1}.conv")


def decoder(c: SEANetConfig) -> list[Rule]:
    rules, at = _conv("decoder/conv_in", "decoder.layers.0.conv"), 1
    if c.lstm:
        rules += _lstm("decoder/lstm/layers", f"decoder.layers.{at}.lstm")
        at += 1
    for i in range(len(c.ratios)):
        rules += _conv(f"decoder/stage{i}_up", f"decoder.layers.{at + 1}.conv", UP)
        at += 2
        for j in range(c.blocks):
            rules += _unit(c, f"decoder/stage{i}_unit{j}", f"decoder.layers.{at + j}")
        at += c.blocks
    return rules + _conv("decoder/conv_out", f"decoder.layers.{at + 1}.conv")


def _conv(ours: str, theirs: str, transform: Transform = CONV) -> list[Rule]:
    return [Rule(f"{ours}/kernel", f"{theirs}.weight", transform), Rule(f"{ours}/bias", f"{theirs}.bias")]


def _unit(c: SEANetConfig, ours: str, theirs: str) -> list[Rule]:
    rules = _conv(f"{ours}/conv", f"{theirs}.block.1.conv") + _conv(f"{ours}/out", f"{theirs}.block.3.conv", POINT)
    return rules + (_conv(f"{ours}/shortcut", f"{theirs}.shortcut.conv", POINT) if c.shortcut else [])


def _lstm(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}/input/kernel", f"{theirs}.weight_ih_l{{i}}", TRANSPOSE),
        Rule(f"{ours}/input/bias", f"{theirs}.bias_ih_l{{i}}"),
        Rule(f"{ours}/hidden_kernel", f"{theirs}.weight_hh_l{{i}}", TRANSPOSE),
        Rule(f"{ours}/hidden_bias", f"{theirs}.bias_hh_l{{i}}"),
    ]
