"""Shikra next to transformers' Llama and CLIP, live: random sizes, through its authors' names."""

import jax
import numpy as np
import pytest
from closeness import close, close_trees
from shikra_names import shikra as named

from mmjax.models import llama, llava, shikra, vit
from mmjax.nn.mlp import quick_gelu
from mmjax.weights import shikra as weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", [0, 1])
def test_forward_loss_and_gradients(seed):
    rng = np.random.default_rng(seed)
    heads, hidden, depth = (int(x) for x in rng.integers((1, 9, 2), (4, 30, 5)))
    vision = vit.ViTConfig(
        15, 5, width=6 * heads, depth=depth, num_heads=heads, hidden=hidden, activation=quick_gelu, epsilon=1e-5
    )
    language = llama.LlamaConfig(
        29, 64, width=8 * heads, depth=2, num_heads=2 * heads, num_kv_heads=2 * heads, head_dim=4, hidden=hidden + 3
    )
    model = shikra.Shikra(llava.LlavaConfig(vision, language, image_token=26, projector=llava.linear))
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=6 * heads, intermediate_size=hidden, num_hidden_layers=depth, num_attention_heads=heads,
            image_size=15, patch_size=5, attn_implementation="eager",
        )
    )  # fmt: skip
    text = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=29, hidden_size=8 * heads, intermediate_size=hidden + 3, num_hidden_layers=2,
            num_attention_heads=2 * heads, num_key_value_heads=2 * heads, tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )  # fmt: skip
    projector = torch.nn.Linear(6 * heads, 8 * heads)
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in (tower, text, projector):
            for name, weight in part.named_parameters():
                weight.copy_(("norm" in name and name.endswith("weight")) + 0.2 * torch.randn(weight.shape))

    ids = rng.integers(3, 25, (2, 15))
    for row, start in enumerate(rng.integers(1, 4, 2)):
        ids[row, start : start + 11] = [27, *[26] * 9, 28]
    images = rng.normal(size=(2, 15, 15, 3)).astype(np.float32)
    spoken = np.arange(15) >= np.array([[13], [14]])
    with torch.no_grad():
        seen = tower(torch.tensor(images.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states[-2][:, 1:]
    embeds = text.model.embed_tokens(torch.tensor(ids)).clone()
    embeds[torch.tensor(ids == 26)] = projector(seen).reshape(-1, embeds.shape[-1])
    out = text(inputs_embeds=embeds, labels=torch.tensor(np.where(spoken, ids, -100)))
    out.loss.backward()

    def arrays(read) -> dict:
        tensors = {f"model.mm_projector.{n}": read(x) for n, x in projector.named_parameters()}
        return tensors | {n: read(x) for n, x in text.named_parameters()}

    frozen = {f"tower.{n}": x.detach().numpy() for n, x in tower.named_parameters()}
    theirs = arrays(lambda x: x.detach().numpy())
    variables = weights.load(model, theirs, named(theirs | frozen)["vision"])
    batch = {"input_ids": ids.astype(np.int32), "images": images, "spoken": spoken}
    logits = jax.jit(model.apply)(variables, batch["input_ids"], images).logits
    loss, gradients = jax.jit(jax.value_and_grad(lambda v: shikra.loss(model, v, batch, None, 0)[0]))(variables)
    close("logits", logits, out.logits.detach().numpy(), relative=1e-5)
    close("loss", loss, out.loss.item(), relative=1e-5)
    expected = named(arrays(lambda x: x.grad.numpy()) | frozen)
    trained = ("language", "projector")
    close_trees(*({n: t[n] for n in trained} for t in (gradients["params"], expected)), relative=1e-4)
