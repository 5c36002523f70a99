"""DINO next to lightly's DINOLoss and DINOProjectionHead and transformers' ViTModel, live: random sizes and weights."""

import jax
import lightly_files
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import dino

torch = pytest.importorskip("torch", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", range(3))
def test_loss_gradient_and_center_over_three_steps(seed):
    lightly, rng = lightly_files.load(), np.random.default_rng(seed)
    batch, views, prototypes = int(rng.integers(2, 6)), int(rng.integers(2, 7)), int(rng.integers(5, 40))
    theirs = lightly.DINOLoss(prototypes, 0.04, 0.07, warmup_teacher_temp_epochs=2, center_momentum=0.8)
    center = np.zeros(prototypes, np.float32)
    for epoch in range(3):
        student, teacher = (rng.normal(size=(batch, v, prototypes)).astype(np.float32) for v in (views, 2))
        logits = torch.tensor(student, requires_grad=True)
        out = theirs(list(torch.tensor(teacher).unbind(1)), list(logits.unbind(1)), epoch=epoch)
        out.backward()

        targets = dino.centred(teacher, center, dino.ramp(0.04, 0.07, 2, epoch))
        value, gradient = jax.value_and_grad(dino.self_distillation)(student, targets, 0.1)
        center = dino.moved_center(center, teacher, 0.8)
        close(f"loss {epoch}", value, out.item(), relative=1e-5)
        close(f"gradient {epoch}", gradient, logits.grad.numpy(), relative=1e-4)
        close(f"center {epoch}", center, theirs.center[0, 0].numpy(), relative=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_head_and_its_gradients(seed):
    lightly, rng = lightly_files.load(), np.random.default_rng(seed)
    width, hidden, bottleneck, prototypes = (int(n) for n in rng.integers(3, 30, 4))
    theirs = lightly.DINOProjectionHead(width, hidden, bottleneck, prototypes, norm_last_layer=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape) * 0.4)

    def tree(of) -> dict:
        flat = {name: of(p).detach().numpy() for name, p in theirs.named_parameters()}
        linear = lambda name: {"kernel": flat[f"{name}.weight"].T, "bias": flat[f"{name}.bias"]}  # noqa: E731
        prototypes = {"kernel": flat["last_layer.weight_v"].T, "gain": flat["last_layer.weight_g"][:, 0]}
        return {
            "up": linear("layers.0"), "transform": linear("layers.2"), "down": linear("layers.4"),
            "prototypes": prototypes,
        }  # fmt: skip

    x, weight = (rng.normal(size=(4, n)).astype(np.float32) for n in (width, prototypes))
    inputs = torch.tensor(x, requires_grad=True)
    out = theirs(inputs)
    (out * torch.tensor(weight)).sum().backward()
    head = dino.Head(dino.HeadConfig(hidden, bottleneck, prototypes))

    def loss(params, x):
        logits = head.apply({"params": params}, x)
        return (logits * weight).sum(), logits

    (_, logits), found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(tree(lambda p: p), x)
    close("logits", logits, out.detach().numpy(), relative=1e-5)
    close_trees(found[0], tree(lambda p: p.grad), relative=1e-4)
    close("gradient of the features", found[1], inputs.grad.numpy(), relative=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_features_and_attention_of_a_folder_of_transformers(tmp_path, seed):
    """DINO's hub folders hold a ViTModel without a pooler."""
    transformers, rng = pytest.importorskip("transformers"), np.random.default_rng(seed)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2 + seed, num_attention_heads=3, intermediate_size=31, image_size=20,
        patch_size=5, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + ("layernorm" in name and name.endswith("weight")))
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    images = rng.normal(size=(3, 20, 20, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.tensor(images.transpose(0, 3, 1, 2)), output_attentions=True)
    features = jax.jit(model.apply)(variables, images)
    attention = jax.jit(lambda images: dino.class_attention(model.config, variables["params"], images))(images)
    close("features", features.pooler_output, out.last_hidden_state[:, 0].numpy(), relative=1e-5)
    close("attention", attention, out.attentions[-1][:, :, 0, 1:].numpy(), relative=1e-5)
