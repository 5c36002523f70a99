"""VQGAN next to diffusers' VQModel, live: random sizes and weights, outputs, ids, the loss of codes, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vqgan_names
from closeness import close, close_trees

from mmjax.models import vqgan
from mmjax.nn.quantizers import Codebook

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
diffusers = pytest.importorskip("diffusers", reason="pip install --no-deps diffusers")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("widths", "blocks", "attention"), [((4, 8, 8), 2, (0, 2)), ((6, 6), 1, (1,))])
def test_outputs_ids_and_gradients_of_vq_model(widths, blocks, attention):
    torch.manual_seed(len(widths))
    down = [f"{'Attn' if i in attention else ''}DownEncoderBlock2D" for i in range(len(widths))]
    up = [f"{'Attn' if i in attention else ''}UpDecoderBlock2D" for i in reversed(range(len(widths)))]
    theirs = diffusers.VQModel(
        down_block_types=down, up_block_types=up, block_out_channels=widths, layers_per_block=blocks,
        latent_channels=5, num_vq_embeddings=13, vq_embed_dim=3, norm_num_groups=2,
    )  # fmt: skip
    vqgan_names.randomise(theirs)
    side = 16
    attends = tuple(side // 2**i for i in attention)
    levels = tuple(width // widths[0] for width in widths)
    codec = vqgan.CodecConfig(side, widths[0], levels, blocks, 5, attends, attends, groups=2)
    config = vqgan.VQGANConfig(codec, Codebook(13, 3, commitment=1.0, codebook=0.25))
    images, factor = (torch.randn(2, 3, side, side) for _ in range(2))
    z = theirs.encode(images).latents
    _, quantising, (_, _, ids) = theirs.quantize(z)
    made = theirs.decode(z).sample
    total = (made * factor).mean() + quantising
    total.backward()

    flat = {name: x.detach().numpy() for name, x in theirs.named_parameters()}
    slopes = {name: x.grad.numpy() for name, x in theirs.named_parameters()}
    params, wanted = (
        vqgan_names.tree(one, vqgan_names.diffusers_half, len(widths), vqgan_names.VQ) for one in (flat, slopes)
    )
    inputs, weight = (x.numpy().transpose(0, 2, 3, 1) for x in (images, factor))

    run = jax.jit(jax.value_and_grad(lambda params: weighted(config, params, inputs, weight), has_aux=True))
    (value, out), gradients = run(params)
    close("z", out.z, z.detach().numpy().transpose(0, 2, 3, 1), relative=1e-5)
    np.testing.assert_array_equal(np.ravel(out.quantized.ids), ids.numpy())
    close("images", out.images, made.detach().numpy().transpose(0, 2, 3, 1), relative=1e-5)
    close("loss of codes", out.quantized.loss, quantising.item(), relative=1e-5)
    close("loss", value, total.item(), relative=1e-4)
    close_trees(gradients, wanted, relative=1e-4)


def weighted(config, params, images, weight):
    out = vqgan.VQGAN(config).apply({"params": params}, images)
    return jnp.mean(out.images * weight) + out.quantized.loss, out
