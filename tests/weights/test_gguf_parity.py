"""LLaMA out of a GGUF next to transformers' reader of the same file, live: quantised weights of random models, and of
SmolLM2 where it is there."""

from pathlib import Path

import jax
import numpy as np
import pytest
from closeness import close

from mmjax import weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
pytest.importorskip("accelerate", reason="transformers reads no GGUF without it")
gguf = pytest.importorskip("gguf", reason="needs the [gguf] extra")

import gguf_files  # noqa: E402, needs gguf

pytestmark = pytest.mark.parity


def theirs(path: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0"])
def test_logits_equal_those_of_transformers(tmp_path, kind):
    c = gguf_files.sizes(vocab_size=262, tied=kind != "Q8_0")
    arrays = gguf_files.tensors(c, gguf_files.random_parameters(c, 0.08))
    path = tmp_path / "a.gguf"
    gguf_files.write(path, c, arrays, gguf_files.KINDS[kind], change=gguf_files.add_vocabulary)
    ids = np.random.default_rng(0).integers(0, 262, (2, 20))
    model, variables = weights.load_gguf(path)
    with torch.no_grad():
        expected = theirs(path)(torch.tensor(ids)).logits.numpy()
    close("forward logits", jax.jit(model.apply)(variables, ids).logits, expected, relative=1e-5)


@pytest.mark.slow
def test_the_real_smollm2_equals_transformers(smollm2):
    speech = weights.load_language(smollm2)
    their_tokens = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    # No blanks before digits: of tokenizer.ggml.pre, which tells SmolLM2's digits apart, transformers knows nothing.
    message = [{"role": "user", "content": "Write a haiku about 3 rivers in Côte d'Ivoire, please! 🙂\n\n  Danke"}]
    text = their_tokens.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = their_tokens(text, add_special_tokens=False)["input_ids"]
    assert speech.prompt(message[0]["content"]) == ids
    model, variables = weights.load_gguf(smollm2)
    with torch.no_grad():
        expected = theirs(smollm2)(torch.tensor([ids])).logits.numpy()
    close("forward logits of SmolLM2", jax.jit(model.apply)(variables, np.array([ids])).logits, expected, relative=1e-4)
