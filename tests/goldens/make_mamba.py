"""Makes mamba_hf.npz, hf_mamba/ and hf_mamba2/: what transformers' Mamba and Mamba-2 compute from random weights.

Without CUDA they take their plain loops, which are the oracle. Sizes are odd and unequal, so that no axis can stand in
for another; every weight is random. Needs torch and transformers; run as python tests/goldens/make_mamba.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from make_gpt import numpy, outputs_of

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 41, "hidden_size": 12, "num_hidden_layers": 2, "expand": 3, "layer_norm_epsilon": 1e-3,
    "pad_token_id": None, "bos_token_id": 40, "eos_token_id": 40,
}  # fmt: skip
MAMBA = {"state_size": 5, "conv_kernel": 3, "time_step_rank": 7, "use_associative_scan": False}
MAMBA2 = {"state_size": 10, "conv_kernel": 4, "num_heads": 6, "head_dim": 6, "n_groups": 2, "chunk_size": 4}


def randomise(model: torch.nn.Module, scale: float = 0.3) -> None:
    """A stays near its own start: exp(delta A) of a random A is 0 or 1."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                weight.add_(torch.randn(weight.shape) * scale)
            else:
                mean = 1.0 if "norm" in name or name.endswith("mixer.D") else 0.0
                weight.copy_(mean + torch.randn(weight.shape) * scale)


def model_of(kind: str, **fields) -> torch.nn.Module:
    sizes = {**SIZES, **{"Mamba": MAMBA, "Mamba2": MAMBA2}[kind], **fields}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    randomise(model)
    return model


def outputs() -> None:
    arrays = {}
    for kind in ("Mamba", "Mamba2"):
        torch.manual_seed(0)
        arrays |= {f"{kind.lower()}/{name}": x for name, x in outputs_of(model_of(kind), 40).items()}
    np.savez_compressed(HERE / "mamba_hf.npz", **arrays)


def folders() -> None:
    for kind, tied in (("Mamba", True), ("Mamba2", True)):
        torch.manual_seed(1)
        model = model_of(kind, vocab_size=19, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied)
        folder = HERE / f"hf_{kind.lower()}"
        model.save_pretrained(folder)
        ids = torch.randint(0, 19, (2, 15))
        with torch.no_grad():
            arrays = numpy({"input_ids": ids, "logits": model(ids).logits})
        np.savez_compressed(folder / "outputs.npz", **arrays)


if __name__ == "__main__":
    outputs()
    folders()
