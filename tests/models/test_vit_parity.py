"""ViT next to transformers.ViTModel, live: random sizes and weights, through mmjax.weights.load_hf."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_names
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import vit
from mmjax.ops import images as image_ops

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


def original(kind: type, seed: int, **fields) -> "transformers.PreTrainedModel":
    rng = np.random.default_rng(seed)
    heads, patch = int(rng.integers(1, 4)), int(rng.integers(3, 9))
    config = transformers.ViTConfig(
        hidden_size=heads * 10, num_attention_heads=heads, intermediate_size=31,
        num_hidden_layers=int(rng.integers(1, 4)), patch_size=patch, image_size=patch * 3, attn_implementation="eager",
        **fields,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * 0.2)
    return model


def gradients(model) -> dict:
    return vit_names.from_vit({name: weight.grad.numpy() for name, weight in model.named_parameters()})


@pytest.mark.parametrize(
    ("seed", "activation", "epsilon", "sides"),
    [(0, "gelu", 1e-12, (3, 3)), (1, "gelu_pytorch_tanh", 1e-6, (5, 2)), (2, "quick_gelu", 1e-6, (1, 4))],
)
def test_features_of_any_image_size_and_their_gradients(tmp_path, seed, activation, epsilon, sides):
    theirs = original(transformers.ViTModel, seed, hidden_act=activation, layer_norm_eps=epsilon)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    model = vit.ViT(dataclasses.replace(model.config, resize=image_ops.resize_cubic))

    rng = np.random.default_rng(seed + 100)
    height, width = (side * model.config.patch_size for side in sides)
    images = rng.normal(size=(4, height, width, 3)).astype(np.float32)
    out = theirs(torch.tensor(images.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True, output_hidden_states=True)
    factors = [rng.normal(size=x.shape).astype(np.float32) for x in (out.last_hidden_state, out.pooler_output)]
    total = sum((x * torch.tensor(f)).mean() for x, f in zip((out[0], out[1]), factors, strict=True))
    total.backward()

    def weighted(variables):
        ours = model.apply(variables, images, collect=True)
        pairs = zip((ours.last_hidden_state, ours.pooler_output), factors, strict=True)
        return sum(jnp.mean(x * f) for x, f in pairs), ours

    (value, ours), found = jax.jit(jax.value_and_grad(weighted, has_aux=True))(variables)
    close("loss", value, total.item(), relative=1e-5)
    close("tokens", ours.last_hidden_state, out.last_hidden_state.detach().numpy(), relative=1e-5)
    close("pooled", ours.pooler_output, out.pooler_output.detach().numpy(), relative=1e-5)
    for layer, hidden in enumerate(out.hidden_states[1:]):
        close(f"layer {layer}", ours.hidden_states[layer], hidden.detach().numpy(), relative=1e-5)
    close_trees(found["params"], gradients(theirs), relative=1e-4)


@pytest.mark.parametrize("seed", [3, 4])
def test_logits_loss_and_gradients_of_classes(tmp_path, seed):
    theirs = original(transformers.ViTForImageClassification, seed, num_labels=5, qkv_bias=seed == 3)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    rng, side = np.random.default_rng(seed + 100), model.config.image_size
    images, label = rng.normal(size=(6, side, side, 3)).astype(np.float32), rng.integers(0, 5, 6)
    out = theirs(torch.tensor(images.transpose(0, 3, 1, 2)), labels=torch.tensor(label))
    out.loss.backward()

    batch = {"images": images, "label": label.astype(np.int32)}
    value, found = jax.jit(jax.value_and_grad(lambda v: vit.loss(model, v, batch, jax.random.key(0), 0)[0]))(variables)
    close("logits", jax.jit(model.apply)(variables, images).logits, out.logits.detach().numpy(), relative=1e-5)
    close("loss", value, out.loss.item(), relative=1e-5)
    theirs = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    for name in [name for name in theirs if not model.config.qkv_bias and name.endswith("q_proj.weight")]:
        for projection in ("q_proj", "k_proj", "v_proj"):  # what the table of names expects
            bias = name.replace("q_proj.weight", f"{projection}.bias")
            theirs[bias] = np.zeros(model.config.width, np.float32)
    expected = vit_names.from_vit(theirs)
    if not model.config.qkv_bias:
        for projection in ("query", "key", "value"):
            del expected["vit"]["layers"]["attention"][projection]["bias"]
    close_trees(found["params"], expected, relative=1e-4)
