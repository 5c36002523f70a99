"""Quantisers next to vector-quantize-pytorch, live: other sizes than the stored ones, ten steps of a codebook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close

from mmjax.ops import quantize

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
vq = pytest.importorskip(
    "vector_quantize_pytorch", reason="pip install --no-deps vector-quantize-pytorch, and what it wants"
)

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("turned", [False, True])
def test_ten_steps_of_a_moving_codebook(turned):
    rng = np.random.default_rng(turned)
    model = vq.VectorQuantize(8, codebook_size=31, decay=0.9, commitment_weight=1.0, rotation_trick=turned).train()
    book = model._codebook
    codes = rng.normal(size=(31, 8)).astype(np.float32)
    for buffer in (book.embed, book.embed_avg):
        buffer.copy_(torch.tensor(codes)[None])
    gradient, state = quantize.rotated if turned else quantize.straight_through, quantize.begin(codes)

    @jax.jit
    def step(state, batch, factor):
        def value(z):
            ids = quantize.nearest(z, state["codes"])
            quantised = quantize.lookup(state["codes"], ids)
            loss = quantize.commitment_loss(z, quantised)
            out = gradient(z, quantised)
            return jnp.sum(out * factor) + loss, (out, ids, loss, quantize.moved(state, z, ids, 0.9))

        return jax.grad(value, has_aux=True)(batch)

    for i in range(10):
        batch, factor = rng.normal(size=(2, 4, 25, 8)).astype(np.float32)
        z = torch.tensor(batch, requires_grad=True)
        out, ids, loss = model(z)
        (torch.sum(out * torch.tensor(factor)) + loss.sum()).backward()
        slope, (found, found_ids, found_loss, state) = step(state, batch, factor)
        np.testing.assert_array_equal(found_ids, ids.numpy())
        close(f"quantised {i}", found, out.detach().numpy(), relative=1e-5)
        close(f"loss {i}", found_loss, loss.sum().item(), relative=1e-5)
        close(f"gradient {i}", slope, z.grad.numpy(), relative=1e-5)
        close(f"codes {i}", state["codes"], book.embed[0].numpy(), relative=1e-5)


@pytest.mark.parametrize("levels", [(8, 6, 5), (7, 5, 5, 5, 5)])
def test_published_levels_of_fsq(levels):
    z = torch.randn(3, 50, len(levels), generator=torch.Generator().manual_seed(0)) * 3
    z.requires_grad_()
    model = vq.FSQ(list(levels))
    out, ids = model(z)
    out.sum().backward()
    found = quantize.fsq(z.detach().numpy(), levels)
    close("quantised", found, out.detach().numpy(), relative=1e-5)
    np.testing.assert_array_equal(quantize.fsq_ids(found, levels), ids.numpy())
    slope = jax.grad(lambda z: quantize.fsq(z, levels).sum())(z.detach().numpy())
    close("gradient", slope, z.grad.numpy(), relative=1e-4)
    close(
        "codes",
        quantize.fsq_codes(np.arange(model.codebook_size), levels),
        model.implicit_codebook.numpy(),
        relative=1e-6,
    )
