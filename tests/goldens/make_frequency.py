"""Makes frequency.npz: a plain account of frequencies as tokens, from the formulas alone, with scipy.fft for transforms
and loops for the rest; torch in float64 for the network, so that gradients are not by hand. Needs scipy and torch:

    python tests/goldens/make_frequency.py

    CASE/{images,labels}                            uint8 [B H W 3]; int [B 2], -1 for none
    CASE/statistics/{mean,deviation,step}           [n 3], [n 3], [n] of the images, coefficients by rows of frequencies
                                                    (Fourier: all real parts, then all imaginary ones)
    CASE/{values,tokens}                            [B L m]
    CASE/rounded                                    [B H W 3], the pictures of `tokens` where these are codes
    CASE/weights/NAME, CASE/gradients/NAME          float32, of the loss
    CASE/{z,losses,loss}                            [B L W], [B L m], []
    CASE/{t,noise}                                  [R B L], [R B L m] of the diffusion
"""

import itertools
import math
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from torch.nn import functional as F

DEPTH, HEADS, HIDDEN, COUNTS, HEAD_WIDTH, Q = 2, 2, 12, (3, 2), 10, 3
CASES = {
    # odd height; two bands grow, the last one shrinks
    "fft": {"size": (7, 6), "block": None, "edges": (0.5, 1.5, 3.2), "group": 3, "step": 0.7, "floor": 0.6},
    "dct": {"size": (6, 9), "block": 3, "edges": (0.5, 1.2), "group": 4, "step": 0.4, "floor": 0.01},
}
BATCH, WIDTH, REPEATS = 4, 8, 2
GREY, RED_BLUE, GREEN = np.array([1, 1, 1]) / 3**0.5, np.array([1, 0, -1]) / 2**0.5, np.array([-1, 2, -1]) / 6**0.5


# --- tokens


def fourier(block: np.ndarray) -> list[tuple[int, int, int, float]]:
    """[H W] -> (ky, kx, part, number) of each frequency that is not the conjugate of an earlier one."""
    height, width = block.shape
    full, seen, found = scipy.fft.fft2(block, norm="ortho"), set(), []
    for row, column in itertools.product(range(height), range(width // 2 + 1)):
        other = (-row % height, -column % width)
        if other in seen:
            continue
        seen.add((row, column))
        ky = row if 2 * row < height else row - height
        if other == (row, column):
            found.append((ky, column, 0, full[row, column].real))
        else:
            found.append((ky, column, 0, math.sqrt(2) * full[row, column].real))
            found.append((ky, column, 1, math.sqrt(2) * full[row, column].imag))
    return sorted(found, key=lambda x: x[2])


def cosines(block: np.ndarray) -> list[tuple[int, int, int, float]]:
    full = scipy.fft.dctn(block, norm="ortho")
    return [(u, v, 0, full[u, v]) for u, v in itertools.product(*map(range, block.shape))]


def picture_of(numbers: list[float], places: list[tuple[int, int, int]], size: tuple[int, int], basis: str):
    height, width = size
    if basis == "dct":
        full = np.zeros(size)
        for number, (u, v, _) in zip(numbers, places, strict=True):
            full[u, v] = number
        return scipy.fft.idctn(full, norm="ortho")
    full = np.zeros(size, complex)
    for number, (ky, kx, part) in zip(numbers, places, strict=True):
        row, column = ky % height, kx % width
        other = (-row % height, -column % width)
        value = number * (1j if part else 1) / (1 if other == (row, column) else math.sqrt(2))
        full[row, column] += value
        if other != (row, column):
            full[other] += np.conj(value)
    back = scipy.fft.ifft2(full, norm="ortho")
    assert np.abs(back.imag).max() < 1e-12
    return back.real


def tokenized(case: dict, basis: str, images: np.ndarray) -> dict:
    """Statistics, tokens, which numbers count, tokens in each band, and a function from values to pictures."""
    (height, width), group, edges = case["size"], case["group"], case["edges"]
    rows, columns = (case["block"],) * 2 if case["block"] else case["size"]
    colours = np.einsum("oc,bhwc->bhwo", np.stack([GREY, RED_BLUE, GREEN]), images / 127.5 - 1)
    corners = list(itertools.product(range(0, height, rows), range(0, width, columns)))
    transform = fourier if basis == "fft" else cosines
    entries = [
        [
            [transform(picture[y : y + rows, x : x + columns, c]) for c in range(3)]
            for y, x in corners
        ]
        for picture in colours
    ]  # fmt: skip
    places = [entry[:3] for entry in entries[0][0][0]]
    c = np.array([[[[entry[3] for entry in channel] for channel in block] for block in picture] for picture in entries])
    c = np.moveaxis(c, 2, 3)  # [B P n 3]

    squared = [(ky * columns) ** 2 + (kx * rows) ** 2 for ky, kx, _ in places]
    radius = [math.sqrt(x) / min(rows, columns) for x in squared]
    band = [sum(r >= edge for edge in edges) for r in radius]
    order = sorted(range(len(places)), key=lambda k: (squared[k], math.atan2(places[k][0], places[k][1]), k))
    mean = c.mean((0, 1))
    deviation = np.maximum(c.std((0, 1)), case["floor"])
    reach = [max(np.abs(c - mean)[:, :, k].max() for k in order if band[k] == b) for b in range(len(edges) + 1)]
    step = np.array([max(case["step"], reach[b] / Q) for b in band])

    tokens, sizes = [], []  # (block, coefficients)
    for b in range(len(edges) + 1):
        mine = [k for k in order if band[k] == b]
        chunks = [mine[i : i + group] for i in range(0, len(mine), group)]
        tokens += [(p, chunk) for p in range(len(corners)) for chunk in chunks]
        sizes.append(len(corners) * len(chunks))
    shape = (len(images), len(tokens), group, 3)
    values, grain, live = np.zeros(shape), np.ones(shape[1:]), np.zeros(shape[1:], bool)
    for i, (p, chunk) in enumerate(tokens):
        for j, k in enumerate(chunk):
            values[:, i, j] = (c[:, p, k] - mean[k]) / deviation[k]
            grain[i, j], live[i, j] = step[k] / deviation[k], True
    kinds = [tokens.index((0, chunk)) for _, chunk in tokens]
    flat = lambda x: x.reshape(*x.shape[:-2], -1)  # noqa: E731

    def picture(values: np.ndarray) -> np.ndarray:
        values, out = values.reshape(shape), np.zeros((len(images), height, width, 3))
        for b, channel in itertools.product(range(len(images)), range(3)):
            found = np.zeros((len(corners), len(places)))
            for i, (p, chunk) in enumerate(tokens):
                for j, k in enumerate(chunk):
                    found[p, k] = mean[k, channel] + deviation[k, channel] * values[b, i, j, channel]
            for (y, x), numbers in zip(corners, found, strict=True):
                out[b, y : y + rows, x : x + columns, channel] = picture_of(numbers, places, (rows, columns), basis)
        return np.einsum("oc,bhwo->bhwc", np.stack([GREY, RED_BLUE, GREEN]), out)

    distinct = sorted(set(kinds))
    return {
        "statistics": {"mean": mean, "deviation": deviation, "step": step}, "values": flat(values),
        "grain": flat(grain), "live": flat(live), "kinds": [distinct.index(x) for x in kinds], "sizes": sizes,
        "picture": picture,
    }  # fmt: skip


# --- network: w holds arrays [in out], layers first


def norm(x, scale=None, bias=None):
    return F.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)


def dense(w: dict, name: str, x, layer: int | None = None):
    kernel, bias = w[f"{name}/kernel"], w[f"{name}/bias"]
    return x @ kernel + bias if layer is None else x @ kernel[layer] + bias[layer]


def known(w: dict, inputs, kinds: list[int], sizes: list[int], labels: np.ndarray):
    """inputs [B L m] of each token -> z [B L W]."""
    rows, start = [], 0
    for count in COUNTS:  # behind each kind of label, the row of none
        rows.append([start + (count if label < 0 else int(label)) for label in labels[:, len(rows)]])
        start += count + 1
    told = sum(w["condition/embedding"][row] for row in rows)[:, None]
    read = torch.stack([inputs[:, i] @ w["projection"][kind] for i, kind in enumerate(kinds)], 1)
    slots, level, first = [], [-1], 0
    for b, size in enumerate(sizes):
        for j in range(size):
            slot = (w["pos"][first + j] + w["band_embed"][b]).expand(len(inputs), -1)
            if b:
                before, begin = sizes[b - 1], first - sizes[b - 1]
                held = [j * before // size] if size >= before else [t for t in range(before) if t * size // before == j]
                slot = slot + sum(read[:, begin + t] for t in held)
            slots.append(slot)
            level.append(b)
        first += size
    x = torch.cat([told, torch.stack(slots, 1)], 1)
    allowed = torch.tensor([[k <= q for k in level] for q in level])
    for layer in range(DEPTH):
        at = "reader/layers"
        h = norm(x, w[f"{at}/norm1/scale"][layer], w[f"{at}/norm1/bias"][layer])
        q, k, v = (
            dense(w, f"{at}/attention/{name}", h, layer).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        mixed = torch.softmax(scores.masked_fill(~allowed, -math.inf), -1) @ v
        x = x + dense(w, f"{at}/attention/out", mixed.transpose(1, 2).flatten(-2), layer)
        h = norm(x, w[f"{at}/norm2/scale"][layer], w[f"{at}/norm2/bias"][layer])
        x = x + dense(w, f"{at}/mlp/down", F.gelu(dense(w, f"{at}/mlp/up", h, layer)), layer)
    return norm(x, w["reader/norm/scale"], w["reader/norm/bias"])[:, 1:]


def code_losses(w: dict, z, codes):
    logits = dense(w, "head/out", z).unflatten(-1, (codes.shape[-1], 2 * Q + 1))
    return -torch.log_softmax(logits, -1).gather(-1, (codes + Q)[..., None])[..., 0]


def predicted(w: dict, x, t, z):
    """MAR's head, of one block."""
    angles = t[..., None] * torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float64) / 128)
    at = "head/latents/net"
    time = dense(w, f"{at}/time/down", F.silu(dense(w, f"{at}/time/up", torch.cat([angles.cos(), angles.sin()], -1))))
    y = F.silu(time + dense(w, f"{at}/condition", z))
    x = dense(w, f"{at}/embed", x)
    shift, scale, gate = dense(w, f"{at}/layers/modulation/linear", y, 0).chunk(3, -1)
    h = norm(x, w[f"{at}/layers/norm/scale"][0], w[f"{at}/layers/norm/bias"][0]) * (1 + scale) + shift
    x = x + gate * dense(w, f"{at}/layers/down", F.silu(dense(w, f"{at}/layers/up", h, 0)), 0)
    shift, scale = dense(w, f"{at}/final/modulation/linear", y).chunk(2, -1)
    return dense(w, f"{at}/final/linear", norm(x) * (1 + scale) + shift)


def noise_losses(w: dict, z, x, t, noise):
    """[B L W], [B L m], [R B L], [R B L m] -> [B L m]."""
    steps = torch.arange(1001, dtype=torch.float64) / 1000
    curve = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = torch.clamp(1 - curve[1:] / curve[:-1], max=0.999)
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    smaller = betas * (1 - before) / (1 - bar)
    smaller[0] = smaller[1]
    bar, before, beta, low = (table[t][..., None] for table in (bar, before, betas, torch.log(smaller)))
    x_t = bar.sqrt() * x + (1 - bar).sqrt() * noise
    guess, place = predicted(w, x_t, t, z).chunk(2, -1)
    log_variance = (place + 1) / 2 * torch.log(beta) + (1 - place) / 2 * low

    def posterior(data):
        return beta * before.sqrt() / (1 - bar) * data + (1 - before) * (1 - beta).sqrt() / (1 - bar) * x_t

    mean = posterior((x_t - (1 - bar).sqrt() * guess.detach()) / bar.sqrt())
    kl = 0.5 * (
        log_variance - low - 1 + torch.exp(low - log_variance) + (posterior(x) - mean) ** 2 / log_variance.exp()
    )
    cdf = lambda x: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    above, under = (cdf((x - mean + edge) / torch.exp(0.5 * log_variance)) for edge in (1 / 255, -1 / 255))
    chance = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - under, above - under))
    first = -torch.log(chance.clamp(min=1e-12))
    bound = torch.where((t == 0)[..., None], first, kl) / math.log(2)
    return ((noise - guess) ** 2 + bound).mean(0)


def weights(random: np.random.Generator, found: dict, features: int, codes: bool) -> dict:
    count = len(set(found["kinds"]))
    shapes = {
        "condition/embedding": (sum(COUNTS) + len(COUNTS), WIDTH), "projection": (count, features, WIDTH),
        "pos": (len(found["kinds"]), WIDTH), "band_embed": (len(found["sizes"]), WIDTH),
        "reader/norm/scale": (WIDTH,), "reader/norm/bias": (WIDTH,),
    }  # fmt: skip
    linears = {f"reader/layers/attention/{x}": (DEPTH, WIDTH, WIDTH) for x in ("query", "key", "value", "out")}
    linears |= {"reader/layers/mlp/up": (DEPTH, WIDTH, HIDDEN), "reader/layers/mlp/down": (DEPTH, HIDDEN, WIDTH)}
    norms = ["reader/layers/norm1", "reader/layers/norm2"]
    if codes:
        linears["head/out"] = (WIDTH, features * (2 * Q + 1))
    else:
        net, inner = "head/latents/net", HEAD_WIDTH
        linears |= {f"{net}/time/up": (256, inner), f"{net}/time/down": (inner, inner)}
        linears |= {f"{net}/condition": (WIDTH, inner), f"{net}/embed": (features, inner)}
        linears |= {f"{net}/layers/{x}": (1, inner, inner) for x in ("up", "down")}
        linears |= {f"{net}/layers/modulation/linear": (1, inner, 3 * inner)}
        linears |= {f"{net}/final/modulation/linear": (inner, 2 * inner), f"{net}/final/linear": (inner, 2 * features)}
        shapes |= {f"{net}/layers/norm/{x}": (1, inner) for x in ("scale", "bias")}
    for name, shape in linears.items():
        shapes |= {f"{name}/kernel": shape, f"{name}/bias": (*shape[:-2], shape[-1])}
    shapes |= {f"{name}/{x}": (DEPTH, WIDTH) for name in norms for x in ("scale", "bias")}
    size = lambda name: 0.05 if "final/linear/kernel" in name else 0.3  # noqa: E731
    return {
        name: np.float32(name.endswith("scale") + size(name) * random.normal(size=shape))
        for name, shape in shapes.items()
    }


def account(basis: str, seed: int = 0) -> dict[str, np.ndarray]:
    random, case, codes = np.random.default_rng([seed, ord(basis[0])]), CASES[basis], basis == "fft"
    images = random.integers(0, 256, (BATCH, *case["size"], 3)).astype(np.uint8)
    images[0] //= 8  # darker, so that means differ
    labels = np.array([[0, 1], [2, -1], [-1, 0], [-1, -1]])
    found = tokenized(case, basis, images)
    values, live = found["values"], torch.tensor(found["live"])
    held = weights(random, found, values.shape[-1], codes)
    w = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in held.items()}
    out = {"images": images, "labels": labels.astype(np.int32), "values": values}
    if codes:
        tokens = np.clip(np.rint(values / found["grain"]), -Q, Q)
        out["rounded"] = found["picture"](tokens * found["grain"])
        inputs = torch.tensor(tokens * np.minimum(found["grain"], 1))
    else:
        tokens, inputs = values, torch.tensor(values)
        np.testing.assert_allclose(found["picture"](values), images / 127.5 - 1, atol=1e-12)
    z = known(w, inputs, found["kinds"], found["sizes"], labels)
    if codes:
        losses = code_losses(w, z, torch.tensor(tokens).long())
    else:
        shape = (REPEATS, *values.shape)
        t = torch.tensor(random.integers(0, 900, shape[:-1]))
        t[0, :, ::5] = 0
        # Smaller where t is 0: in float32 the likelihood of what is far off is rounding.
        noise = np.float32(random.normal(size=shape) * np.where(t == 0, 0.4, 1)[..., None])
        out |= {"t": t.numpy().astype(np.int32), "noise": noise}
        losses = noise_losses(w, z, torch.tensor(values), t, torch.tensor(noise, dtype=torch.float64))
    losses = losses * live
    loss = (losses.sum(-1) / live.sum(-1)).mean()
    loss.backward()
    out |= {"tokens": tokens, "z": z.detach().numpy(), "losses": losses.detach().numpy(), "loss": loss.detach().numpy()}
    out |= {f"statistics/{name}": x for name, x in found["statistics"].items()}
    out |= {f"weights/{name}": x for name, x in held.items()}
    out |= {f"gradients/{name}": x.grad.numpy() for name, x in w.items()}
    print(f"{basis}: {found['sizes']} tokens, loss {loss.item():.4f}")
    return {f"{basis}/{name}": np.float32(x) if x.dtype == np.float64 else x for name, x in out.items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("frequency.npz"), **account("fft"), **account("dct"))
