"""DINOv2 next to lightly's losses and transformers' Dinov2Model and Dinov2WithRegistersModel, live: random sizes."""

import jax
import lightly_files
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import dino, dinov2
from mmjax.weights import dinov2 as names
from mmjax.weights import engine

torch = pytest.importorskip("torch", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", range(3))
def test_patch_loss_gradient_and_center(seed):
    lightly, rng = lightly_files.load(), np.random.default_rng(seed)
    images, side, prototypes = int(rng.integers(1, 5)), int(rng.integers(2, 5)), int(rng.integers(5, 30))
    masks = rng.random((images, 2, side**2)) < 0.3
    masks[0, 0] = False  # a view that hides nothing still counts in the mean
    hidden = dinov2.find_hidden(masks, group=images, most=masks.size)
    count = int(masks.sum())
    student, teacher = (rng.normal(size=(1, masks.size, prototypes)).astype(np.float32) for _ in range(2))
    center = rng.normal(size=prototypes).astype(np.float32) * 0.1

    theirs = lightly.IBOTPatchLoss(prototypes, teacher_temp=0.05, center_momentum=0.8)
    theirs.center.center.copy_(torch.tensor(center))
    logits = torch.tensor(student[0, :count], requires_grad=True)
    out = theirs(torch.tensor(teacher[0, :count]), logits, torch.tensor(masks.reshape(2 * images, side, side)))
    out.backward()

    targets, moved = dinov2.center_and_sharpen(teacher, hidden.counts, center, 0.05, 0.8)
    run = jax.value_and_grad(lambda x: dinov2.masked_distillation(x, targets, hidden.weight, 0.1))
    value, gradient = run(student)
    close("loss", value, out.item(), relative=1e-5)
    close("gradient", gradient[0, :count], logits.grad.numpy(), relative=1e-4)
    assert not gradient[0, count:].any()
    close("center", moved, theirs.center.center.ravel().numpy(), relative=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_koleo_and_its_gradient(seed):
    lightly, rng = lightly_files.load(), np.random.default_rng(seed)
    groups, size, width = (int(n) for n in rng.integers(2, 9, 3))
    features = rng.normal(size=(groups * size, 1, width)).astype(np.float32)
    x = torch.tensor(features, requires_grad=True)
    out = torch.stack([lightly.KoLeoLoss()(part[:, 0]) for part in x.split(size)]).mean()
    out.backward()
    value, gradient = jax.value_and_grad(dinov2.koleo)(features, size)
    close("loss", value, out.item(), relative=1e-5)
    close("gradient", gradient, x.grad.numpy(), relative=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_balanced_assignment(seed):
    lightly, rng = lightly_files.load(), np.random.default_rng(seed)
    logits = rng.uniform(-1, 1, rng.integers(3, 40, 2)).astype(np.float32)
    theirs = lightly.sinkhorn(torch.tensor(logits), iterations=3, epsilon=0.06)
    close("assignment", dinov2.sinkhorn_knopp(logits, np.ones(len(logits), bool), 0.06), theirs.numpy(), relative=2e-5)


@pytest.mark.parametrize(("seed", "registers", "swiglu"), [(0, 0, False), (1, 3, True), (2, 1, False), (3, 0, True)])
def test_backbone_and_its_gradients(tmp_path, seed, registers, swiglu):
    transformers, rng = pytest.importorskip("transformers"), np.random.default_rng(seed)
    heads, patch = int(rng.integers(1, 4)), int(rng.integers(3, 7))
    sizes = {
        "hidden_size": 8 * heads, "num_attention_heads": heads, "num_hidden_layers": int(rng.integers(1, 4)),
        "patch_size": patch, "image_size": 4 * patch, "mlp_ratio": int(rng.integers(1, 5)), "use_swiglu_ffn": swiglu,
        "qkv_bias": seed != 2, "attn_implementation": "eager",
    }  # fmt: skip
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        theirs = transformers.Dinov2WithRegistersModel(config)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (("norm" in name and name.endswith("weight")) or "lambda" in name))
    theirs.eval().save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)

    images = rng.normal(size=(2, 3, 3 * patch, 5 * patch)).astype(np.float32)
    masked = rng.random((2, 15)) < 0.3
    out = theirs(torch.tensor(images), bool_masked_pos=torch.tensor(masked), output_attentions=True)
    factors = rng.normal(size=out.last_hidden_state.shape).astype(np.float32)
    (out.last_hidden_state * torch.tensor(factors)).mean().backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    gradients = engine.load(
        names.RULES(model), names.renamed(model, gradients), names.abstract(model)["params"], format="", source=""
    )

    def value(params):
        ours = model.apply({"params": params}, images.transpose(0, 2, 3, 1), masked)
        return (ours.last_hidden_state * factors).mean(), ours

    (_, ours), found = jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])
    close("last hidden state", ours.last_hidden_state, out.last_hidden_state.detach().numpy(), relative=1e-5)
    close("pooler output", ours.pooler_output, out.pooler_output.detach().numpy(), relative=1e-5)
    close_trees(found, gradients, relative=1e-4)
    if model.config.depth > 1:
        with torch.no_grad():
            seen = theirs(torch.tensor(images), output_attentions=True).attentions[-1][:, :, 0, model.config.prefix :]
        attention = dino.class_attention(model.config, variables["params"], images.transpose(0, 2, 3, 1))
        close("attention", attention, seen.numpy(), relative=1e-5)
