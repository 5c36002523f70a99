"""Mixture of Features next to transformers' towers and two lines of torch, live: random sizes and weights.

Towers through mmjax.weights.load_hf, projectors through load_mof.
"""

import jax
import numpy as np
import pytest
from closeness import close

from mmjax import weights
from mmjax.models import features

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.parity


def randomised(model):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)
    return model.eval()


def towers(seed: int):
    rng = np.random.default_rng(seed)
    patch, heads = int(rng.integers(3, 9)), [int(x) for x in rng.integers(1, 4, 2)]
    square = {"patch_size": patch, "image_size": patch * 3}
    vision = {"hidden_size": heads[0] * 10, "num_attention_heads": heads[0], "intermediate_size": 31}
    vision |= {"num_hidden_layers": int(rng.integers(2, 5)), **square}
    text = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"vocab_size": 20, "max_position_embeddings": 5, "eos_token_id": 19, "bos_token_id": 1, "pad_token_id": 0}
    both = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=7, attn_implementation="eager"
    )
    own = transformers.Dinov2Config(
        hidden_size=heads[1] * 10, num_attention_heads=heads[1], mlp_ratio=2,
        num_hidden_layers=int(rng.integers(1, 4)), attn_implementation="eager", **square,
    )  # fmt: skip
    torch.manual_seed(seed)
    return randomised(transformers.CLIPModel(both)), randomised(transformers.Dinov2Model(own))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_visual_tokens_of_interleaved_mof(tmp_path, seed):
    models = towers(seed)
    for name, model in zip(("clip", "dino"), models, strict=True):
        model.save_pretrained(tmp_path / name)
    widths = [models[0].config.vision_config.hidden_size, models[1].config.hidden_size]
    projectors = [
        torch.nn.Sequential(torch.nn.Linear(width, 11), torch.nn.GELU(), torch.nn.Linear(11, 11)) for width in widths
    ]
    tensors = {
        f"model.{prefix}mm_projector.{name}": weight.detach().clone()
        for prefix, projector in zip(("", "dino_"), projectors, strict=True)
        for name, weight in projector.named_parameters()
    }
    safetensors.save_file(tensors, tmp_path / "mof.safetensors")

    side = models[1].config.image_size
    images = np.random.default_rng(seed).normal(size=(4, side, side, 3)).astype(np.float32)  # one tensor for both
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        seen = models[0].vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        out = models[1](pixels, output_hidden_states=True)
        other = out.hidden_states[-1][:, 1:]
        # It is the state before the last norm, which is what the original reads.
        torch.testing.assert_close(models[1].layernorm(out.hidden_states[-1]), out.last_hidden_state)
        projected = [projector(x) for projector, x in zip(projectors, (seen, other), strict=True)]
        merged = torch.empty(4, 2 * seen.shape[1], 11)
        merged[:, 0::2], merged[:, 1::2] = projected

    loaded = [weights.load_hf(tmp_path / name) for name in ("clip", "dino")]
    mixture, variables = weights.load_mof(tmp_path / "mof.safetensors")

    @jax.jit
    def ours(images):
        both = features.of_towers(*(model.bind(variables) for model, variables in loaded), images)
        return both, mixture.apply(variables, *both)

    both, tokens = ours(images)
    close("CLIP", both.clip, seen.numpy(), relative=1e-5)
    close("DINOv2", both.dino, other.numpy(), relative=1e-5)
    close("tokens", tokens, merged.numpy(), relative=1e-5)
