"""GPT-2 next to transformers.GPT2LMHeadModel, live: random sizes and weights, through mmjax.weights.load_hf."""

import lm_names
import numpy as np
import pytest

from mmjax import weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


def original(seed: int, activation: str):
    import lm_parity

    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    config = transformers.GPT2Config(
        vocab_size=53, n_positions=31, n_embd=heads * 14, n_head=heads, n_layer=int(rng.integers(1, 4)), n_inner=45,
        activation_function=activation, layer_norm_epsilon=10.0 ** -int(rng.integers(3, 7)), resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager", bos_token_id=52, eos_token_id=52,
    )  # fmt: skip
    return lm_parity.randomise(transformers.GPT2LMHeadModel(config), seed)


@pytest.mark.parametrize(("seed", "activation"), [(0, "gelu_new"), (1, "gelu"), (2, "relu")])
def test_everything_equals_transformers(tmp_path, seed, activation):
    import lm_parity

    lm_parity.compare(original(seed, activation), tmp_path, lm_names.gpt2, seed)


def test_transformers_reads_what_we_write(tmp_path):
    theirs = original(3, "gelu_new")
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save_hf(tmp_path / "ours", *weights.load_hf(tmp_path / "theirs"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is transformers.GPT2LMHeadModel
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_bare_model_has_no_prefix(tmp_path):
    theirs = original(4, "gelu_new")
    theirs.transformer.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    ids = np.arange(10)[None]
    hidden = theirs.transformer(torch.tensor(ids)).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(model.apply(variables, ids).last_hidden_state, hidden, rtol=1e-4, atol=1e-5)
