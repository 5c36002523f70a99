"""CLIP next to transformers.CLIPModel, live: random sizes and weights, through mmjax.weights.load_hf."""

import clip_names
import jax
import numpy as np
import pytest

from mmjax import weights
from mmjax.models import clip

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


def original(seed: int, activation: str, eos: int) -> "transformers.CLIPModel":
    rng = np.random.default_rng(seed)
    sizes = {"hidden_act": activation, "projection_dim": 7}
    vision_heads, text_heads, patch = rng.integers(1, 4), rng.integers(1, 4), int(rng.integers(3, 9))
    vision = {"hidden_size": int(vision_heads * 10), "num_attention_heads": int(vision_heads), "intermediate_size": 31}
    text = {"hidden_size": int(text_heads * 14), "num_attention_heads": int(text_heads), "intermediate_size": 45}
    vision |= {"num_hidden_layers": int(rng.integers(1, 4)), "patch_size": patch, "image_size": patch * 3}
    text |= {"num_hidden_layers": int(rng.integers(1, 4)), "vocab_size": 61, "max_position_embeddings": 14}
    text |= {"eos_token_id": eos, "bos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=text | sizes, vision_config=vision | sizes, projection_dim=7, attn_implementation="eager"
    )
    torch.manual_seed(seed)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)
    return model


@pytest.mark.parametrize(("seed", "activation", "eos"), [(0, "quick_gelu", 60), (1, "gelu", 50), (2, "quick_gelu", 2)])
def test_forward_loss_and_gradients(tmp_path, seed, activation, eos):
    theirs = original(seed, activation, eos)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)

    rng = np.random.default_rng(seed + 100)
    end = 60 if eos == 2 else eos
    ids, mask = rng.integers(3, 50, (5, 11)), np.ones((5, 11), bool)
    for row, at in enumerate(rng.integers(1, 11, 5)):
        ids[row, at:], mask[row, at + 1 :] = end, False
    side = model.config.vision.image_size
    images = rng.normal(size=(5, side, side, 3)).astype(np.float32)
    out = theirs(
        input_ids=torch.tensor(ids),
        pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)),
        attention_mask=torch.tensor(mask.astype(int)),
        return_loss=True,
    )
    out.loss.backward()
    expected = clip_names.from_hf({name: weight.grad.numpy() for name, weight in theirs.named_parameters()})

    batch = {"images": images, "input_ids": ids.astype(np.int32), "attention_mask": mask}
    ours = jax.jit(model.apply)(variables, **batch)
    value, gradients = jax.jit(jax.value_and_grad(lambda v: clip.loss(model, v, batch, None, 0)[0]))(variables)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        clip_names.close(name, getattr(ours, name), out[name].detach().numpy(), relative=1e-5)
    clip_names.close("loss", value, out.loss.item(), relative=1e-5)
    clip_names.close_trees(gradients["params"], expected, relative=1e-4)


def test_where_the_class_token_looks_and_what_patches_hold(tmp_path):
    theirs = original(5, "quick_gelu", 60)  # three layers
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    side = model.config.vision.image_size
    images = np.random.default_rng(6).normal(size=(3, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        out = theirs.vision_model(pixels, output_attentions=True, output_hidden_states=True)
    ours = {
        name: jax.jit(lambda x, m=name: model.apply(variables, x, method=m))(images)
        for name in ("attend", "encode_patches")
    }
    clip_names.close("attention", ours["attend"], out.attentions[-1][:, :, 0, 1:].numpy(), relative=1e-5)
    clip_names.close("patches", ours["encode_patches"], out.hidden_states[-1][:, 1:].numpy(), relative=1e-5)
