"""Makes gpt_hf.npz and hf_gpt2/: what transformers' GPT-2 and GPT-1 compute from random weights, and GPT-2's ids.

Sizes are odd and unequal, so that no axis can stand in for another; every weight is random, norms and biases too.
Needs torch and transformers; run as python tests/goldens/make_gpt.py
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
SIZES = {"vocab_size": 41, "n_positions": 23, "n_embd": 24, "n_layer": 2, "n_head": 3, "attn_implementation": "eager"}
EAGER = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


TEXTS = [
    "", " ", "\n\n  x", "Hello world, it's 2026! don't", "  two  spaces\tand a tab",
    "naïve café Ångström", "東京 は 日本", "emoji 😀 and ❤️", "a<|endoftext|>b", "<|endoftext|", "1234567890 3.14",
    "def f(x):\n    return x**2  # y", "\u200b\ufeff",
]  # fmt: skip


def randomise(model: torch.nn.Module, scale: float = 0.3) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") or "norm" in name else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * scale)


def numpy(tensors: dict) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def prefixed(prefix: str, arrays: dict) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def outputs_of(model: torch.nn.Module, vocab_size: int, new: int = 6) -> dict[str, np.ndarray]:
    """Right-padded rows for the loss and its gradients, left-padded rows for what follows them."""
    ids = torch.randint(0, vocab_size, (3, 13))
    mask = torch.ones_like(ids)
    mask[1, 8:], mask[2, 3:] = 0, 0
    labels = torch.where(mask > 0, ids, -100)
    out = model(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    out.loss.backward()
    outputs = {"logits": out.logits, "last_hidden_state": out.hidden_states[-1], "loss": out.loss}
    prompt = {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
    with torch.no_grad():
        outputs["greedy"] = model.generate(**prompt, max_new_tokens=new, do_sample=False, pad_token_id=0)[:, 13:]
        outputs["penalised"] = model.generate(
            **prompt, max_new_tokens=new, do_sample=False, pad_token_id=0, repetition_penalty=1.7
        )[:, 13:]
    return {
        **prefixed("inputs", numpy({"input_ids": ids, "attention_mask": mask})),
        **prefixed("outputs", numpy(outputs)),
        **prefixed("gradients", numpy({name: weight.grad for name, weight in model.named_parameters()})),
        **prefixed("weights", numpy(dict(model.named_parameters()))),
    }


def gpt2() -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **EAGER, n_inner=40, eos_token_id=40)).eval()
    randomise(model)
    arrays = outputs_of(model, 40)  # without the id that ends a text
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SIZES, **EAGER)).eval()
    randomise(model)
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(arrays["inputs/input_ids"]), output_hidden_states=True)
    first = {"logits": out.logits, "last_hidden_state": out.hidden_states[-1]}
    arrays |= prefixed("gpt1/outputs", numpy(first)) | prefixed("gpt1/weights", numpy(dict(model.named_parameters())))
    np.savez_compressed(HERE / "gpt_hf.npz", **arrays)


def hf_gpt2() -> None:
    """A folder; the activation is not the default."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=19, n_positions=9, n_embd=8, n_layer=2, n_head=2, n_inner=20, activation_function="gelu",
        layer_norm_epsilon=1e-4, bos_token_id=18, eos_token_id=18, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    randomise(model)
    model.save_pretrained(HERE / "hf_gpt2")
    ids = torch.randint(0, 19, (2, 7))
    with torch.no_grad():
        np.savez_compressed(HERE / "hf_gpt2" / "outputs.npz", input_ids=ids.numpy(), logits=model(ids).logits.numpy())


def tokenizer() -> None:
    """A vocabulary of 400 in GPT-2's two files, and what transformers' GPT2Tokenizer makes of TEXTS."""
    core = tokenizers.ByteLevelBPETokenizer()
    core.train_from_iterator(TEXTS * 3, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"])
    core.save_model(str(HERE / "hf_gpt2"))
    theirs = transformers.GPT2Tokenizer.from_pretrained(HERE / "hf_gpt2")
    ids = [theirs(text)["input_ids"] for text in TEXTS]
    (HERE / "hf_gpt2" / "ids.json").write_text(json.dumps([TEXTS, ids, [theirs.decode(one) for one in ids]]))


if __name__ == "__main__":
    gpt2()
    hf_gpt2()
    tokenizer()
