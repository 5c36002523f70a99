"""LLaMA and Mistral next to transformers' classes, live: random sizes and weights, through mmjax.weights.load_hf."""

import lm_names
import numpy as np
import pytest

from mmjax import weights
from mmjax.nn import sampling

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity

ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


def original(kind: str, seed: int, rope: str, tied: bool):
    import lm_parity

    rng = np.random.default_rng(seed)
    kv_heads, group = (int(rng.integers(1, 4)) for _ in range(2))
    fields = {"sliding_window": 5} if kind == "Mistral" else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=53, max_position_embeddings=64, hidden_size=kv_heads * group * 8,
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads, head_dim=int(rng.choice([6, 8, 12])), num_hidden_layers=int(rng.integers(1, 4)),
        intermediate_size=45, rms_norm_eps=10.0 ** -int(rng.integers(3, 7)), rope_parameters=ROPES[rope],
        tie_word_embeddings=tied, attn_implementation="eager", pad_token_id=None, bos_token_id=51, eos_token_id=52,
        **fields,
    )  # fmt: skip
    return lm_parity.randomise(getattr(transformers, f"{kind}ForCausalLM")(config), seed)


CASES = [
    ("Llama", 0, "plain", False),
    ("Llama", 1, "linear", True),
    ("Llama", 2, "llama3", False),
    ("Mistral", 3, "plain", False),
]


@pytest.mark.parametrize(("kind", "seed", "rope", "tied"), CASES)
def test_everything_equals_transformers(tmp_path, kind, seed, rope, tied):
    import lm_parity

    lm_parity.compare(original(kind, seed, rope, tied), tmp_path, lm_names.llama, seed)


@pytest.mark.parametrize(("kind", "seed", "rope", "tied"), CASES)
def test_transformers_reads_what_we_write(tmp_path, kind, seed, rope, tied):
    theirs = original(kind, seed, rope, tied)
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save_hf(tmp_path / "ours", *weights.load_hf(tmp_path / "theirs"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(theirs)
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    ids = torch.arange(20)[None]
    assert torch.equal(theirs(ids).logits, again(ids).logits)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.1}, {"repetition_penalty": 1.5},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
    ids=str,
)  # fmt: skip
def test_filters_equal_transformers(options):
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(0)
    logits, ids = (rng.normal(size=(5, 53)) * 3).astype(np.float32), rng.integers(0, 53, (5, 9))
    made = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor, "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper, "top_p": theirs.TopPLogitsWarper, "min_p": theirs.MinPLogitsWarper,
    }  # fmt: skip
    expected = torch.tensor(logits)
    for name, process in made.items():
        if name in options:
            expected = process(options[name])(torch.tensor(ids), expected)
    seen = np.zeros((5, 53), bool)
    seen[np.arange(5)[:, None], ids] = True
    found = sampling.filtered(logits, seen, sampling.Sampling(**{"temperature": 1.0, **options}))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected.numpy()))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
