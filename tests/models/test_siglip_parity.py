"""SigLIP next to transformers.SiglipModel, live: random sizes and weights, through mmjax.weights.load_hf."""

import dataclasses

import jax
import numpy as np
import pytest
import vit_names
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import siglip
from mmjax.ops import images as image_ops

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


def original(seed: int, activation: str) -> "transformers.SiglipModel":
    rng = np.random.default_rng(seed)
    vision_heads, text_heads, patch = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(3, 9))
    vision = {"hidden_size": vision_heads * 10, "num_attention_heads": vision_heads, "intermediate_size": 31}
    vision |= {"num_hidden_layers": int(rng.integers(1, 4)), "patch_size": patch, "image_size": patch * 3 + seed}
    text = {"hidden_size": text_heads * 14, "num_attention_heads": text_heads, "intermediate_size": 45}
    text |= {"num_hidden_layers": int(rng.integers(1, 4)), "vocab_size": 61, "max_position_embeddings": 14}
    text |= {"bos_token_id": None, "eos_token_id": 1, "projection_size": vision_heads * 10}
    config = transformers.SiglipConfig(
        text_config=text | {"hidden_act": activation}, vision_config=vision | {"hidden_act": activation},
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = {"logit_scale": 2.0, "logit_bias": -3.0}.get(name, 1.0 if "norm" in name and "weight" in name else 0)
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)
    return model


@pytest.mark.parametrize(
    ("seed", "activation", "length", "sides", "masked"),
    [(0, "gelu_pytorch_tanh", 14, (3, 3), False), (1, "gelu", 9, (4, 2), False), (2, "gelu", 14, (5, 5), True)],
)
def test_forward_loss_and_gradients(tmp_path, seed, activation, length, sides, masked):
    theirs = original(seed, activation)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    vision = dataclasses.replace(model.config.vision, resize=image_ops.resize_cubic)
    model = siglip.SigLIP(dataclasses.replace(model.config, vision=vision))

    rng = np.random.default_rng(seed + 100)
    ids, mask = rng.integers(2, 61, (5, length)), np.ones((5, length), bool)
    for row, at in enumerate(rng.integers(1, length, 5)):
        ids[row, at:], mask[row, at + 1 :] = 1, False
    height, width = (side * vision.patch_size + seed for side in sides)  # with pixels that fill no patch
    images = rng.normal(size=(5, height, width, 3)).astype(np.float32)
    out = theirs(
        input_ids=torch.tensor(ids), pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)),
        attention_mask=torch.tensor(mask.astype(int)) if masked else None, return_loss=True,
        interpolate_pos_encoding=True,
    )  # fmt: skip
    out.loss.backward()
    expected = vit_names.from_siglip({name: weight.grad.numpy() for name, weight in theirs.named_parameters()})

    batch = {"images": images, "input_ids": ids.astype(np.int32)} | ({"attention_mask": mask} if masked else {})
    ours = jax.jit(model.apply)(variables, **batch)
    value, gradients = jax.jit(jax.value_and_grad(lambda v: siglip.loss(model, v, batch, None, 0)[0]))(variables)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        close(name, getattr(ours, name), out[name].detach().numpy(), relative=1e-5)
    close("loss", value, out.loss.item(), relative=1e-5)
    close_trees(gradients["params"], expected, relative=1e-4)
