"""The KL autoencoder next to diffusers' AutoencoderKL, live: random sizes and weights, pictures, gradients."""

import jax
import jax.numpy as jnp
import pytest
import vqgan_names
from closeness import close, close_trees

from mmjax.models import kl, vqgan

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
diffusers = pytest.importorskip("diffusers", reason="pip install --no-deps diffusers")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("widths", "blocks", "attention"), [((4, 8), 2, (1,)), ((4, 4, 12), 1, ())])
def test_posteriors_pictures_and_gradients_of_autoencoder_kl(widths, blocks, attention):
    torch.manual_seed(len(widths))
    down = [f"{'Attn' if i in attention else ''}DownEncoderBlock2D" for i in range(len(widths))]
    theirs = diffusers.AutoencoderKL(
        down_block_types=down, up_block_types=["UpDecoderBlock2D"] * len(widths), block_out_channels=widths,
        layers_per_block=blocks, latent_channels=3, norm_num_groups=2,
    )  # fmt: skip
    vqgan_names.randomise(theirs)
    images, factor = (torch.randn(2, 3, 16, 24) for _ in range(2))
    posterior = theirs.encode(images).latent_dist
    made = theirs.decode(posterior.mean).sample
    total = (made * factor).mean() + 0.1 * posterior.kl().mean()
    total.backward()

    flat = {name: x.detach().numpy() for name, x in theirs.named_parameters()}
    slopes = {name: x.grad.numpy() for name, x in theirs.named_parameters()}
    params, wanted = (
        vqgan_names.tree(one, vqgan_names.diffusers_half, len(widths), vqgan_names.KL) for one in (flat, slopes)
    )
    inputs, weight = (x.numpy().transpose(0, 2, 3, 1) for x in (images, factor))
    levels, attends = tuple(width // 4 for width in widths), tuple(16 // 2**i for i in attention)
    codec = vqgan.CodecConfig(16, 4, levels, blocks, 3, attends, (), groups=2)

    def weighted(params):
        out = kl.AutoencoderKL(kl.KLConfig(codec)).apply({"params": params}, inputs)
        return jnp.mean(out.images * weight) + 0.1 * out.posterior.kl().mean(), out

    (value, out), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params)
    for name in ("mean", "log_variance"):
        theirs_too = getattr(posterior, {"log_variance": "logvar"}.get(name, name))
        close(name, getattr(out.posterior, name), theirs_too.detach().numpy().transpose(0, 2, 3, 1), relative=1e-5)
    close("images", out.images, made.detach().numpy().transpose(0, 2, 3, 1), relative=1e-5)
    close("loss", value, total.item(), relative=1e-4)
    close_trees(gradients, wanted, relative=1e-4)
