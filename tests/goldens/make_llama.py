"""Makes llama_hf.npz and hf_llama/: what transformers' LLaMA and Mistral compute from random weights.

Sizes are odd and unequal, so that no axis can stand in for another; every weight is random, norms too. Needs torch and
transformers; run as python tests/goldens/make_llama.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from make_gpt import numpy, outputs_of, prefixed, randomise

HERE = Path(__file__).parent
SIZES = {
    "vocab_size": 41, "max_position_embeddings": 64, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 36, "rms_norm_eps": 1e-5,
    "attn_implementation": "eager", "bos_token_id": 40, "eos_token_id": 40, "pad_token_id": None,
}  # fmt: skip
THETA = 50.0  # short waves, so that 13 positions turn through all of them
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
        "original_max_position_embeddings": 20,
    },
}  # fmt: skip


def model_of(kind: str, **fields) -> torch.nn.Module:
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **fields})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def llama() -> None:
    torch.manual_seed(0)
    plain = {"rope_type": "default", "rope_theta": THETA}
    model = model_of("Llama", rope_parameters=plain)
    randomise(model)
    arrays = outputs_of(model, 40)
    ids = torch.from_numpy(arrays["inputs/input_ids"])
    others = {name: model_of("Llama", rope_parameters={**plain, **fields}) for name, fields in SCALINGS.items()}
    others["window"] = model_of("Mistral", rope_parameters=plain, sliding_window=4)
    for name, other in others.items():
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            arrays |= prefixed("outputs", numpy({f"logits_{name}": other(ids).logits}))
            if name == "window":
                every = torch.ones_like(ids)  # left out, ids of 0 would pass for padding
                greedy = other.generate(ids, attention_mask=every, max_new_tokens=6, do_sample=False, pad_token_id=0)
                greedy = greedy[:, 13:]
                arrays |= prefixed("outputs", numpy({"greedy_window": greedy}))
    np.savez_compressed(HERE / "llama_hf.npz", **arrays)


def hf_llama() -> None:
    """A folder with a tied head and biases."""
    torch.manual_seed(1)
    small = {"vocab_size": 19, "hidden_size": 8, "num_attention_heads": 4, "head_dim": 6, "intermediate_size": 20}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    scaled = {**SCALINGS["llama3"], "rope_theta": THETA}
    model = model_of(
        "Llama", **small, **ends, rope_parameters=scaled, tie_word_embeddings=True, attention_bias=True
    )  # fmt: skip
    randomise(model)
    model.save_pretrained(HERE / "hf_llama")
    ids = torch.randint(0, 19, (2, 30))
    with torch.no_grad():
        np.savez_compressed(HERE / "hf_llama" / "outputs.npz", input_ids=ids.numpy(), logits=model(ids).logits.numpy())


if __name__ == "__main__":
    llama()
    hf_llama()
