"""DiT next to diffusers' DiTTransformer2DModel and schedulers, live: random sizes and weights, read by our own
converter."""

from functools import partial

import diffusion_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close, close_trees
from einops import rearrange

from mmjax.models import diffusion as dit
from mmjax.nn.embeddings import Labels
from mmjax.ops import diffusion
from mmjax.weights import diffusion as dit_weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
diffusers = pytest.importorskip("diffusers", reason="pip install --no-deps diffusers")

pytestmark = pytest.mark.parity
PARTS = {  # theirs -> the authors'
    "pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}  # fmt: skip
BLOCK = {
    "norm1.linear": "adaLN_modulation.1", "attn1.to_out.0": "attn.proj", "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}  # fmt: skip
EMBED = {
    "timestep_embedder.linear_1": "t_embedder.mlp.0", "timestep_embedder.linear_2": "t_embedder.mlp.2",
    "class_embedder.embedding_table": "y_embedder.embedding_table",
}  # fmt: skip


def network(seed: int, depth: int, heads: int, learned: bool):
    """Theirs, made as the authors': blocks share what they tell of time and class, frequencies and norms are equal."""
    model = diffusers.DiTTransformer2DModel(
        heads, 8, 3, 3 * (1 + learned), depth, sample_size=8, num_embeds_ada_norm=4, norm_eps=1e-6
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model.eval()


def named(model, gradient: bool = False) -> dict[str, np.ndarray]:
    """Their parameters or gradients, by the authors' names."""
    flat = {name: (p.grad if gradient else p.detach()).numpy() for name, p in model.named_parameters()}
    out = {}
    for kind in ("weight", "bias"):
        out |= {f"{our}.{kind}": flat[f"{their}.{kind}"] for their, our in PARTS.items()}
        for i in range(len(model.transformer_blocks)):
            theirs = f"transformer_blocks.{i}"
            out |= {f"blocks.{i}.{our}.{kind}": flat[f"{theirs}.{their}.{kind}"] for their, our in BLOCK.items()}
            three = [flat[f"{theirs}.attn1.to_{x}.{kind}"] for x in "qkv"]
            out[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate(three)
        embed = "transformer_blocks.0.norm1.emb"
        names = EMBED.items() if kind == "weight" else list(EMBED.items())[:2]
        out |= {f"{our}.{kind}": flat[f"{embed}.{their}.{kind}"] for their, our in names}
    return out


@pytest.mark.parametrize(("seed", "depth", "heads", "learned"), [(0, 2, 2, True), (1, 3, 4, False)])
def test_outputs_and_gradients(seed, depth, heads, learned):
    theirs, rng = network(seed, depth, heads, learned), np.random.default_rng(seed)
    condition = partial(Labels, (4,))
    ours = dit.DiT(dit.DiTConfig((8, 8), 3, 2, 8 * heads, depth, heads, 32 * heads, condition, learn_variance=learned))
    variables = dit_weights.load(ours, named(theirs))
    x, t, labels = rng.normal(size=(3, 3, 8, 8)).astype(np.float32), np.array([0, 7, 999]), np.array([3, 0, 2])
    target = rng.normal(size=(3, 3 * (1 + learned), 8, 8)).astype(np.float32)
    output = theirs(torch.tensor(x), torch.tensor(t), torch.tensor(labels)).sample
    value = ((output - torch.tensor(target)) ** 2).mean()
    value.backward()

    def loss(params):
        output = ours.apply({"params": params}, rearrange(x, "b c h w -> b h w c"), labels, t)
        output = rearrange(output, "b h w c -> b c h w")
        return jnp.mean((output - target) ** 2), output

    (found, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close("output", out, output.detach(), relative=1e-4)
    close("loss", found, value.detach(), relative=1e-5)
    close_trees(gradients, diffusion_names.dit(named(theirs, gradient=True)), relative=1e-4)


def drawn(seed: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 3, 5)).astype(np.float32), rng.normal(size=(2, 3 * channels, 5)).astype(np.float32)


def last(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), 1, -1)


@pytest.mark.parametrize("count", [10, 25])
def test_steps_back_with_a_learned_variance(count):
    scheduler = diffusers.DDPMScheduler(
        1000, beta_schedule="squaredcos_cap_v2", variance_type="learned_range", timestep_spacing="linspace",
        clip_sample=False,
    )  # fmt: skip
    scheduler.set_timesteps(count)
    chain = diffusion.chain(diffusion.cosine_betas(), count)
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), chain.timesteps[::-1])
    for i, t in reversed(list(enumerate(chain.timesteps))):
        # Theirs takes the step before to be t - 1000 // count, which is the one before where steps are evenly spaced.
        scheduler.previous_timestep = lambda t: int(chain.timesteps[i - 1]) if i else -1  # noqa: B023
        x, output = drawn(i, 2)
        draw = torch.Generator().manual_seed(i)
        noise = torch.randn(x.shape, generator=draw)
        theirs = scheduler.step(
            torch.tensor(output), int(t), torch.tensor(x), generator=torch.Generator().manual_seed(i)
        )
        step = diffusion.learned_range(chain, last(output), last(x), jnp.asarray(i))
        ours = diffusion.ancestral_step(chain, step, last(noise), jnp.asarray(i))
        close(f"step {t}", ours, last(theirs.prev_sample), relative=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_steps(eta):
    scheduler = diffusers.DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.set_timesteps(10)  # 900, 800 ... 0
    steps = scheduler.timesteps.numpy()[::-1]
    chain = diffusion.Chain(diffusion.chain(diffusion.linear_betas()).kept[steps], steps)
    for i, t in enumerate(steps):
        x, output = drawn(i, 1)
        noise = drawn(i + 50, 1)[0] * (i > 0)  # theirs adds noise at the last step too
        theirs = scheduler.step(
            torch.tensor(output), int(t), torch.tensor(x), eta=eta, variance_noise=torch.tensor(noise) if eta else None
        )
        ours = diffusion.ddim_step(chain, last(output), last(x), last(noise), jnp.asarray(i), eta)
        close(f"ddim {t}", ours, last(theirs.prev_sample), relative=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_of_a_flow(shift):
    """Theirs runs from 1, noise, to 0, and its velocity points the other way."""
    scheduler, count = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), 6
    scheduler.set_timesteps(sigmas=(1 - np.linspace(0, 1, count + 1)[:-1]).tolist())
    times = diffusion.flow_times(count, shift)
    close("times", times, 1 - scheduler.sigmas.numpy(), relative=1e-6)
    x = start = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for t in scheduler.timesteps:
        velocity = torch.tensor(x) * 0.5 - t / 1000
        x = scheduler.step(-velocity, t, torch.tensor(x)).prev_sample.numpy()
    close("flow", diffusion.euler(lambda x, t: 0.5 * x - (1 - t), start, times), x, relative=1e-5)
