"""Makes quantize.npz: what vector-quantize-pytorch (VectorQuantize, FSQ, LFQ) and haiku's two quantisers compute of
seeded random vectors, with gradients. Needs torch, vector-quantize-pytorch (1.32) and dm-haiku.

    straight, rotated, cosine   three training steps of VectorQuantize: outputs, losses, gradients, the codebook's state
    fsq, lfq                    outputs, ids, gradients; of LFQ also its entropies, and a row with zeros
    haiku                       eq. 3's loss with its gradients, perplexity; a step of the EMA as if after many others
"""

from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from haiku.nets import VectorQuantizer, VectorQuantizerEMA
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

HERE = Path(__file__).parent
BATCH, LENGTH, DIM, CODES, DECAY, STEPS = 3, 5, 4, 7, 0.7, 3
LEVELS = (4, 3, 5)


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().copy()


def steps(prefix: str, codes: np.ndarray, batches: np.ndarray, factors: np.ndarray, **kind) -> dict[str, np.ndarray]:
    model = VectorQuantize(DIM, codebook_size=CODES, decay=DECAY, commitment_weight=0.25, **kind).train()
    book = model._codebook
    book.embed.copy_(torch.tensor(codes)[None])
    book.embed_avg.copy_(torch.tensor(codes)[None])
    golden = {}
    for step, (batch, factor) in enumerate(zip(batches, factors, strict=True)):
        z = torch.tensor(batch, requires_grad=True)
        out, ids, loss = model(z)
        (torch.sum(out * torch.tensor(factor)) + loss.sum()).backward()
        found = {"out": out, "ids": ids, "loss": loss.sum(), "gradient": z.grad}
        found |= {"codes": book.embed[0], "count": book.cluster_size[0], "total": book.embed_avg[0]}
        golden |= {f"{prefix}/{step}/{name}": numpy(x) for name, x in found.items()}
    return golden


def grids(rng: np.random.Generator) -> dict[str, np.ndarray]:
    golden = {}
    z = torch.tensor(2 * rng.normal(size=(2, 6, 3)).astype(np.float32), requires_grad=True)
    factor = rng.normal(size=z.shape).astype(np.float32)
    model = FSQ(list(LEVELS))
    out, ids = model(z)
    torch.sum(out * torch.tensor(factor)).backward()
    golden |= {f"fsq/{n}": numpy(x) for n, x in {"z": z, "out": out, "ids": ids, "gradient": z.grad}.items()}
    golden |= {"fsq/factor": factor, "fsq/levels": np.array(LEVELS), "fsq/codebook": numpy(model.implicit_codebook)}

    z = 0.6 * rng.normal(size=(2, 6, 4)).astype(np.float32)
    z[1, 2] = (0, 0.3, 0, -0.2)
    z, factor = torch.tensor(z, requires_grad=True), rng.normal(size=z.shape).astype(np.float32)
    model = LFQ(dim=4, entropy_loss_weight=1.0, diversity_gamma=0.5).train()
    (out, ids, _), parts = model(z, inv_temperature=0.8, return_loss_breakdown=True)
    total = torch.sum(out * torch.tensor(factor)) + parts.per_sample_entropy - 0.5 * parts.batch_entropy
    total.backward()
    found = {"z": z, "out": out, "ids": ids, "gradient": z.grad, "each": parts.per_sample_entropy}
    found |= {"together": parts.batch_entropy, "codebook": model.codebook}
    return golden | {f"lfq/{n}": numpy(x) for n, x in found.items()} | {"lfq/factor": factor}


def of_haiku(codes: np.ndarray, z: np.ndarray, factor: np.ndarray) -> dict[str, np.ndarray]:
    def run(z):
        return VectorQuantizer(DIM, CODES, 0.3, name="vq")(z, is_training=True)

    def total(params, z):
        out, _ = hk.transform_with_state(run).apply(params, {}, None, z)
        return jnp.sum(out["quantize"] * factor) + out["loss"], out

    params = {"vq": {"embeddings": jnp.asarray(codes.T)}}
    (_, out), (of_codes, of_z) = jax.value_and_grad(total, (0, 1), has_aux=True)(params, jnp.asarray(z))
    golden = {"loss": out["loss"], "perplexity": out["perplexity"], "ids": out["encoding_indices"]}
    golden |= {"gradient": of_z, "gradient_codes": of_codes["vq"]["embeddings"].T}

    # The averages of haiku are divided by 1 - decay^steps: after very many, by 1, as ours always.
    average = hk.transform_with_state(lambda z: VectorQuantizerEMA(DIM, CODES, 0.3, DECAY, name="vq")(z, True))
    _, state = average.init(jax.random.key(0), z)
    late = jnp.int32(10**6)
    for name, hidden in (("ema_cluster_size", np.ones(CODES, np.float32)), ("ema_dw", codes.T)):
        state[f"vq/~/{name}"] = {"counter": late, "hidden": jnp.asarray(hidden), "average": jnp.asarray(hidden)}
    state["vq"] = {"embeddings": jnp.asarray(codes.T)}
    _, after = average.apply({}, state, None, z)
    return {f"haiku/{n}": np.asarray(x) for n, x in (golden | {"codes": after["vq"]["embeddings"].T}).items()}


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(CODES, DIM)).astype(np.float32)
    codes[3] = 40.0  # nothing chooses it
    batches, factors = (rng.normal(size=(STEPS, BATCH, LENGTH, DIM)).astype(np.float32) for _ in range(2))
    golden = {"codes": codes, "batches": batches, "factors": factors}
    torch.manual_seed(0)
    golden |= steps("straight", codes, batches, factors, rotation_trick=False)
    golden |= steps("rotated", codes, batches, factors)
    lengths = np.linalg.norm(codes, axis=-1, keepdims=True)
    golden |= steps("cosine", codes / lengths, batches, factors, use_cosine_sim=True, rotation_trick=False)
    golden |= grids(rng) | of_haiku(codes, batches[0], factors[0])
    np.savez_compressed(HERE / "quantize.npz", **golden)
