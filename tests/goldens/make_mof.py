"""Makes mof.npz: Mixture-of-Features (Tong et al. 2024, arXiv:2401.06209) told in plain NumPy, in float64, and the
verdicts of MMVP-VLM. Written from the paper's description, beside the package and not from it:

    python tests/goldens/make_mof.py

B 2 images, N 6 tokens of each tower, D 8 their width, H 10 the language model's width, S 9 tokens of text, V 12 words.

    clip, dino                          [B N D]    features of the two towers, class token dropped
    linear/model.mm_projector.{weight,bias}, linear/model.dino_mm_projector.{weight,bias}      [H D], [H]
    mlp2x_gelu/model.mm_projector.{0,2}.{weight,bias}, mlp2x_gelu/model.dino_mm_projector....  [H D], [H], [H H], [H]
                                        torch's layout (out, in), under the names of the published weights
    alphas                              [4]        CLIP's shares: 0, 0.25, 0.5, 1
    additive/linear, additive/mlp2x_gelu          [4 B N H]  mixed by each alpha, then mm_projector for both
    interleaved/linear, interleaved/mlp2x_gelu    [B 2N H]   each through its own adapter, then c0 d0 c1 d1 ...

    text/embed                          [V H]      the language model's embeddings of its words
    text/CASE/input_ids                 [B S]      -200 stands for the picture, 0 for padding on the right
    text/CASE/labels                    [B S]      -100: not to be learnt
    text/CASE/attention_mask            [B S] bool
    spliced/CASE/inputs_embeds          [B L H]    the interleaved tokens of mlp2x_gelu in the place of -200; L = S-1+2N
    spliced/CASE/labels                 [B L]      -100 for each token of the picture and for what fills up the row
    spliced/CASE/attention_mask         [B L] bool
        CASE both: one picture in each row, at different places, and two rows of unlike length.
        CASE one:  the second row has no picture and takes none; its own 0 are embedded as a word, and the zeros
                   behind them, up to L, are not.
        The mask grows on the left by True, as many as the picture adds: with padding on the right and pictures before
        it this is the mask of what stands there.

    mmvp/similarities                   [7 2 2]    cosine of text t (row) with image j (column), 7 hand-made pairs
    mmvp/chosen                         [7 2]      the image, 0 or 1, that each text chooses
    mmvp/correct                        [7] bool   both right, where the pair's ids are (odd, even): images 0, 1
    mmvp/correct_even_first             [7] bool   both right, where its ids are (even, odd): images 1, 0
        A text takes the first image where softmax over the two gives it more than 0.5, else the second: a tie is the
        second's. So a tie is wrong for the first text and right for the second.
        0 both right, although image 0 alone would take text 1; 1 both take image 0; 2 both take image 1; 3 crossed;
        4 the first text's tie; 5 the second's; 6 both tie.
"""

import math
from pathlib import Path

import numpy as np

OUT = Path(__file__).with_name("mof.npz")
B, N, D, H, S, V = 2, 6, 8, 10, 9, 12
IMAGE, IGNORE, PAD = -200, -100, 0
ALPHAS = (0.0, 0.25, 0.5, 1.0)
ADAPTERS = {"linear": {"": (H, D)}, "mlp2x_gelu": {"0.": (H, D), "2.": (H, H)}}  # layer -> (out, in)
SCALE = 100.0  # exp(logit_scale)

erf = np.vectorize(math.erf)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def adapter_weights(rng: np.random.Generator, kind: str, name: str) -> dict[str, np.ndarray]:
    out = {}
    for layer, shape in ADAPTERS[kind].items():
        # Values that float32 holds too: whoever reads them computes with the same.
        out[f"model.{name}.{layer}weight"] = (rng.normal(size=shape) * shape[1] ** -0.5).astype(np.float32)
        out[f"model.{name}.{layer}bias"] = (rng.normal(size=shape[0]) * 0.3).astype(np.float32)
    return out


def adapt(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """[... D] -> [... H]."""
    layers = sorted(
        key.removesuffix("weight") for key in weights if key.startswith(f"model.{name}.") and "weight" in key
    )
    for i, layer in enumerate(layers):
        x = gelu(x) if i else x
        x = x @ weights[f"{layer}weight"].astype(np.float64).T + weights[f"{layer}bias"].astype(np.float64)
    return x


def interleave(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[B N H] twice -> [B 2N H]."""
    out = np.empty((first.shape[0], 2 * first.shape[1], first.shape[2]))
    out[:, 0::2], out[:, 1::2] = first, second
    return out


def splice(embed: np.ndarray, pictures: np.ndarray, ids: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> tuple:
    """Row by row: the words before the picture, its tokens, the words after it; then all rows to one length."""
    rows = []
    for row, row_labels, row_mask, picture in zip(ids, labels, mask, pictures, strict=True):
        at = np.flatnonzero(row == IMAGE)
        if len(at):
            (at,) = at
            new = np.concatenate([embed[row[:at]], picture, embed[row[at + 1 :]]])
            new_labels = np.concatenate([row_labels[:at], np.full(len(picture), IGNORE), row_labels[at + 1 :]])
        else:
            new, new_labels = embed[row], row_labels
        rows.append((new, new_labels, np.concatenate([np.ones(len(new) - len(row), bool), row_mask])))
    length = max(len(new) for new, _, _ in rows)
    return tuple(
        np.stack(
            [np.pad(one, [(0, length - len(one))] + [(0, 0)] * (one.ndim - 1), constant_values=fill) for one in part]
        )
        for part, fill in zip(zip(*rows, strict=True), (0, IGNORE, False), strict=True)
    )


def texts() -> dict[str, dict[str, np.ndarray]]:
    both = np.array([[1, 5, IMAGE, 7, 3, 8, 2, PAD, PAD], [1, IMAGE, 4, 4, 6, 11, 9, 10, 2]])
    one = np.array([[1, 9, 3, IMAGE, 5, 8, 10, 2, PAD], [1, 6, 7, 5, 2, PAD, PAD, PAD, PAD]])
    cases = {}
    for name, ids, asked in (("both", both, (5, 4)), ("one", one, (6, 2))):  # how many tokens are the question
        answer = (np.arange(S) >= np.array(asked)[:, None]) & (ids != PAD)
        cases[name] = {"input_ids": ids, "labels": np.where(answer, ids, IGNORE), "attention_mask": ids != PAD}
    return cases


def mixtures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    clip, dino = (rng.normal(size=(B, N, D)).astype(np.float32) for _ in range(2))
    out = {"clip": clip, "dino": dino, "alphas": np.array(ALPHAS, np.float32)}
    for kind in ADAPTERS:
        weights = adapter_weights(rng, kind, "mm_projector") | adapter_weights(rng, kind, "dino_mm_projector")
        out |= {f"{kind}/{name}": x for name, x in weights.items()}
        mixed = [alpha * clip.astype(np.float64) + (1 - alpha) * dino.astype(np.float64) for alpha in ALPHAS]
        out[f"additive/{kind}"] = np.stack([adapt(x, weights, "mm_projector") for x in mixed])
        own = (
            adapt(clip.astype(np.float64), weights, "mm_projector"),
            adapt(dino.astype(np.float64), weights, "dino_mm_projector"),
        )
        out[f"interleaved/{kind}"] = interleave(*own)
    embed = rng.normal(size=(V, H)).astype(np.float32)
    out["text/embed"] = embed
    for case, text in texts().items():
        spliced = splice(
            embed.astype(np.float64),
            out["interleaved/mlp2x_gelu"],
            **dict(zip(("ids", "labels", "mask"), text.values(), strict=True)),
        )
        out |= {f"text/{case}/{name}": x for name, x in text.items()}
        out |= {
            f"spliced/{case}/{name}": x
            for name, x in zip(("inputs_embeds", "labels", "attention_mask"), spliced, strict=True)
        }
    return out


def verdicts() -> dict[str, np.ndarray]:
    tables = np.array([
        [[0.20, 0.10], [0.25, 0.40]],
        [[0.30, 0.20], [0.40, 0.10]],
        [[0.20, 0.30], [0.10, 0.40]],
        [[0.20, 0.30], [0.40, 0.10]],
        [[0.25, 0.25], [0.10, 0.40]],
        [[0.30, 0.20], [0.25, 0.25]],
        [[0.25, 0.25], [0.25, 0.25]],
    ])  # fmt: skip
    chances = np.exp(SCALE * (tables - tables.max(-1, keepdims=True)))
    chances = chances / chances.sum(-1, keepdims=True)  # over the images, for each text
    chosen = np.where(chances[..., 0] > 0.5, 0, 1)
    return {
        "mmvp/similarities": tables.astype(np.float32),
        "mmvp/chosen": chosen,
        "mmvp/correct": (chosen == [0, 1]).all(-1),
        "mmvp/correct_even_first": (chosen == [1, 0]).all(-1),
    }


if __name__ == "__main__":
    arrays = mixtures() | verdicts()
    arrays = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in arrays.items()}
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT.name}: {len(arrays)} arrays, {OUT.stat().st_size / 1e3:.0f} kB")
