"""Gaussian diffusion and flow matching: what noise does to data, and the ways back.

Sources: Ho et al. 2020, arXiv:2006.11239 (DDPM); Nichol and Dhariwal 2021, arXiv:2102.09672 (cosine schedule, learned
variance, fewer steps), and its code openai/improved-diffusion, which DiT and MAR use; Song et al. 2021,
arXiv:2010.02502 (DDIM); Lipman et al. 2023, arXiv:2210.02747, and Liu et al. 2023, arXiv:2209.03003 (flows).

    x_t = sqrt(kept_t) x + sqrt(1 - kept_t) noise      t = 0 ... S-1, from almost data to noise: a Chain
    x_t = t x + (1 - t) noise                          t in [0, 1], from noise to DATA: a flow, its speed x - noise

S steps of a chain, x [... C] with any axes between those of t and the last: a row of tokens or a picture. Tables are
float64 NumPy and become float32 where they meet arrays. Networks are functions that predict, and know nothing of this.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LOG2 = math.log(2.0)
Noise = Callable[[jax.Array], jax.Array]  # number of a step -> standard normal noise of the shape of x
Denoise = Callable[[jax.Array, jax.Array], jax.Array]  # x_t, timestep [] -> what the network says of x_t


def linear_betas(steps: int = 1000) -> np.ndarray:
    """DDPM, section 4: from 1e-4 to 0.02 where there are 1000 steps."""
    return np.linspace(0.1 / steps, 20 / steps, steps)


def cosine_betas(steps: int = 1000, largest: float = 0.999) -> np.ndarray:
    """Nichol and Dhariwal, eq. 17: kept is a squared cosine but for the last steps."""
    kept = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], largest)


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """S steps that add noise. Made by `chain`."""

    kept: np.ndarray  # [S] float64, the share of the data's variance that is left after each step: alpha bar
    timesteps: np.ndarray  # [S] int, what networks call each step: its number before some were left out

    @functools.cached_property
    def before(self) -> np.ndarray:
        """kept, one step earlier."""
        return np.append(1.0, self.kept[:-1])

    @functools.cached_property
    def betas(self) -> np.ndarray:
        return 1 - self.kept / self.before

    @functools.cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """Of q(x_{t-1} | x_t, x). The first would be log 0; as in the originals it is the second."""
        variance = self.betas * (1 - self.before) / (1 - self.kept)
        return np.log(np.append(variance[1], variance[1:]))

    @functools.cached_property
    def fixed_log_variance(self) -> np.ndarray:
        """log beta, but for the first, which is the second's lower bound: the originals' FIXED_LARGE."""
        return np.append(self.posterior_log_variance[0], np.log(self.betas[1:]))


def chain(betas: np.ndarray, steps: int | None = None) -> Chain:
    """All steps of these betas, or `steps` of them, evenly spaced with the first and the last among them
    (improved-diffusion's space_timesteps of one section): Nichol and Dhariwal, section 4."""
    count = len(betas) if steps is None else steps
    if not 2 <= count <= len(betas):
        raise ValueError(f"a chain keeps between 2 and all {len(betas)} of its steps, got {count}")
    timesteps = np.linspace(0, len(betas) - 1, count).round().astype(np.int64)
    return Chain(np.cumprod(1 - np.asarray(betas, np.float64))[timesteps], timesteps)


def at(table: np.ndarray, t: jax.Array, x: jax.Array) -> jax.Array:
    """table[t] in float32, with axes of size 1 for those of x that t lacks."""
    found = jnp.asarray(table, jnp.float32)[t]
    return found.reshape(found.shape + (1,) * (x.ndim - found.ndim))


def noised(chain: Chain, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """q(x_t | x): DDPM, eq. 4. x and noise [T... ... C], t [T...] int in [0, S)."""
    return at(np.sqrt(chain.kept), t, x) * x + at(np.sqrt(1 - chain.kept), t, x) * noise


def data_from(chain: Chain, x_t: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """The data that this noise would have made x_t of."""
    return at(np.sqrt(1 / chain.kept), t, x_t) * x_t - at(np.sqrt(1 / chain.kept - 1), t, x_t) * noise


def posterior_mean(chain: Chain, x: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """Of q(x_{t-1} | x_t, x): DDPM, eq. 7."""
    rest = 1 - chain.kept
    of_data = chain.betas * np.sqrt(chain.before) / rest
    of_noisy = (1 - chain.before) * np.sqrt(1 - chain.betas) / rest
    return at(of_data, t, x_t) * x + at(of_noisy, t, x_t) * x_t


class Reverse(NamedTuple):
    """A step back: p(x_{t-1} | x_t)."""

    mean: jax.Array
    log_variance: jax.Array
    data: jax.Array  # what the step takes the data to be


def learned_range(chain: Chain, output: jax.Array, x_t: jax.Array, t: jax.Array) -> Reverse:
    """output [... 2C]: noise, and where between its two bounds the log variance lies, -1 lowest and 1 highest, by
    Nichol and Dhariwal, eq. 15."""
    noise, place = _halves(output, x_t)
    share = (place + 1) / 2
    low, high = at(chain.posterior_log_variance, t, x_t), at(np.log(chain.betas), t, x_t)
    data = data_from(chain, x_t, noise, t)
    return Reverse(posterior_mean(chain, data, x_t, t), share * high + (1 - share) * low, data)


def fixed_variance(chain: Chain, output: jax.Array, x_t: jax.Array, t: jax.Array) -> Reverse:
    """output [... C]: noise."""
    data = data_from(chain, x_t, output, t)
    return Reverse(posterior_mean(chain, data, x_t, t), at(chain.fixed_log_variance, t, x_t), data)


def _halves(output: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if output.shape[-1] != 2 * x.shape[-1]:
        raise ValueError(
            f"a network that learns its variance gives two channels for each of its input, got {output.shape[-1]} for "
            f"{x.shape[-1]}"
        )
    return tuple(jnp.split(output, 2, axis=-1))


def noise_error(output: jax.Array, noise: jax.Array, axes: int) -> jax.Array:
    """DDPM, eq. 14: the squared error, a mean over all but the first `axes` axes."""
    return jnp.mean((noise - output) ** 2, axis=tuple(range(axes, noise.ndim)))


def normal_kl(mean: jax.Array, log_variance: jax.Array, other_mean: jax.Array, other_log: jax.Array) -> jax.Array:
    """KL(N(mean, ...) || N(other_mean, ...)) of each element, in nats."""
    ratio = jnp.exp(log_variance - other_log)
    return 0.5 * (other_log - log_variance - 1 + ratio + (mean - other_mean) ** 2 * jnp.exp(-other_log))


def pixel_log_likelihood(x: jax.Array, mean: jax.Array, log_deviation: jax.Array) -> jax.Array:
    """Of each element in nats, as if it were one of 256 shades in [-1, 1]: DDPM, eq. 13, with the originals' tanh form
    of the normal distribution function and their floor of 1e-12."""

    def below(x: jax.Array) -> jax.Array:
        return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    scale = jnp.exp(-log_deviation)
    upper, lower = below((x - mean + 1 / 255) * scale), below((x - mean - 1 / 255) * scale)
    chance = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(chance, 1e-12))


def variational_bound(chain: Chain, step: Reverse, x: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """What step t adds to the bound on -log p(x), in bits for each element: x [T... ... C] -> [T...]."""
    true_mean, true_log = posterior_mean(chain, x, x_t, t), at(chain.posterior_log_variance, t, x_t)
    kl = normal_kl(true_mean, true_log, step.mean, step.log_variance)
    first = -pixel_log_likelihood(x, step.mean, 0.5 * step.log_variance)
    axes = tuple(range(t.ndim, x.ndim))
    return jnp.where(t == 0, first.mean(axes), kl.mean(axes)) / LOG2


def hybrid_loss(
    chain: Chain, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The two parts of the loss of a network that learns its variance, each [T...]: the squared error of the noise, and
    the bound, whose gradient does not reach the noise (Nichol and Dhariwal, section 3.1). The originals weigh both by
    1 where the loss is "MSE", DiT's and MAR's choice. output: [T... ... 2C], what the network said of noised(...)."""
    x_t = noised(chain, x, noise, t)
    guess, place = _halves(output.astype(jnp.float32), x)
    frozen = jnp.concatenate([jax.lax.stop_gradient(guess), place], axis=-1)
    bound = variational_bound(chain, learned_range(chain, frozen, x_t, t), x, x_t, t)
    return noise_error(guess, noise, t.ndim), bound


def guided(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Classifier-free guidance: Ho and Salimans 2022, arXiv:2207.12598, eq. 6 with scale = 1 + w."""
    return unconditional + scale * (conditional - unconditional)


# --- from noise to data: x [...] is noise; each gives data of its shape


def normal_noise(rng: jax.Array, shape: tuple[int, ...]) -> Noise:
    """Fresh noise for each step."""
    return lambda step: jax.random.normal(jax.random.fold_in(rng, step), shape)


def ancestral_step(
    chain: Chain, step: Reverse, noise: jax.Array, t: jax.Array, temperature: float = 1.0
) -> jax.Array:  # fmt: skip
    """DDPM, algorithm 2, line 4; the noise is multiplied by `temperature`, as in MAR."""
    return step.mean + (t > 0) * jnp.exp(0.5 * step.log_variance) * noise * temperature


def ddim_step(chain: Chain, output: jax.Array, x_t: jax.Array, noise: jax.Array | float, t: jax.Array, eta: float):
    """DDIM, eqs. 12 and 16. output [... C or more]: noise first; eta 0 draws nothing, 1 is as random as DDPM."""
    guess = output[..., : x_t.shape[-1]]
    data, before, kept = data_from(chain, x_t, guess, t), at(chain.before, t, x_t), at(chain.kept, t, x_t)
    deviation = eta * jnp.sqrt((1 - before) / (1 - kept) * (1 - kept / before))
    mean = jnp.sqrt(before) * data + jnp.sqrt(1 - before - deviation**2) * guess
    return mean + (t > 0) * deviation * noise


def ancestral(
    chain: Chain, denoise: Denoise, x: jax.Array, noise: Noise, *, reverse: Callable = learned_range,
    temperature: float = 1.0,
) -> jax.Array:  # fmt: skip
    """All S steps back: DDPM, algorithm 2. reverse: learned_range or fixed_variance, by what `denoise` gives."""

    def back(x: jax.Array, t: jax.Array, timestep: jax.Array) -> jax.Array:
        step = reverse(chain, denoise(x, timestep).astype(jnp.float32), x, t)
        return ancestral_step(chain, step, noise(t), t, temperature)

    return _walk(chain, back, x)


def ddim(chain: Chain, denoise: Denoise, x: jax.Array, noise: Noise | None = None, *, eta: float = 0.0) -> jax.Array:
    """All S steps back by DDIM."""
    if eta and noise is None:
        raise ValueError(f"eta={eta} draws noise at each step; give `noise`, for instance normal_noise(rng, x.shape)")

    def back(x: jax.Array, t: jax.Array, timestep: jax.Array) -> jax.Array:
        output = denoise(x, timestep).astype(jnp.float32)
        return ddim_step(chain, output, x, noise(t) if eta else 0.0, t, eta)

    return _walk(chain, back, x)


def _walk(chain: Chain, back: Callable, x: jax.Array) -> jax.Array:
    steps = jnp.arange(len(chain.kept))[::-1], jnp.asarray(chain.timesteps[::-1])
    return jax.lax.scan(lambda x, at: (back(x, *at), None), x.astype(jnp.float32), steps)[0]


# --- flows: t runs from 0, noise, to 1, data, as in SiT (Ma et al. 2024, arXiv:2401.08740)


def on_path(x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x [T... ... C] at time t [T...] in [0, 1]."""
    t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
    return t * x + (1 - t) * noise


def flow_error(output: jax.Array, x: jax.Array, noise: jax.Array, axes: int) -> jax.Array:
    """Lipman et al., eq. 23 without a least deviation: the squared error of the velocity, a mean over all but the first
    `axes` axes."""
    return jnp.mean((output.astype(jnp.float32) - (x - noise)) ** 2, axis=tuple(range(axes, x.ndim)))


def flow_times(steps: int, shift: float = 1.0) -> np.ndarray:
    """[steps + 1] from 0 to 1; a shift above 1 spends more of them near noise (Esser et al. 2024, arXiv:2403.03206, eq.
    23, whose time runs the other way)."""
    noise = 1 - np.linspace(0, 1, steps + 1)
    return 1 - shift * noise / (1 + (shift - 1) * noise)


def euler(velocity: Denoise, x: jax.Array, times: np.ndarray) -> jax.Array:
    """x at times[0] -> x at times[-1]; one call for each step."""
    return _flow(lambda x, t, dt: x + dt * velocity(x, t), x, times)


def heun(velocity: Denoise, x: jax.Array, times: np.ndarray) -> jax.Array:
    """The same with the mean of the speeds at both ends of each step: two calls, and an error of second order."""

    def step(x: jax.Array, t: jax.Array, dt: jax.Array) -> jax.Array:
        first = velocity(x, t)
        return x + dt / 2 * (first + velocity(x + dt * first, t + dt))

    return _flow(step, x, times)


def _flow(step: Callable, x: jax.Array, times: np.ndarray) -> jax.Array:
    pairs = jnp.asarray(times[:-1], jnp.float32), jnp.asarray(np.diff(times), jnp.float32)
    return jax.lax.scan(lambda x, at: (step(x, *at), None), x.astype(jnp.float32), pairs)[0]
