"""GPT-2 and GPT-1 next to transformers' classes, live: random sizes and weights, GPT-2's through mmjax.weights."""

from functools import partial

import jax
import lm_names
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import gpt
from mmjax.nn.mlp import gelu_tanh
from mmjax.objectives import pretrain

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


@pytest.mark.parametrize(("seed", "activation"), [(5, "gelu"), (6, "relu")])
def test_gpt_1_equals_transformers(seed, activation):
    """Whose GELU is the approximation by tanh. Forward pass, loss, gradients, and decoding with our cache."""
    import lm_parity

    rng, length = np.random.default_rng(seed), 17
    heads, layers, epsilon = int(rng.integers(1, 5)), int(rng.integers(1, 4)), 10.0 ** -int(rng.integers(3, 7))
    config = transformers.OpenAIGPTConfig(
        vocab_size=53, n_positions=31, n_embd=heads * 14, n_head=heads, n_layer=layers, afn=activation, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=epsilon, attn_implementation="eager",
    )  # fmt: skip
    theirs = lm_parity.randomise(transformers.OpenAIGPTLMHeadModel(config), seed)
    names = lambda of: lm_names.gpt1({n: of(x).detach().numpy() for n, x in theirs.named_parameters()})  # noqa: E731
    width, function = heads * 14, {"gelu": gelu_tanh, "relu": jax.nn.relu}[activation]
    model = gpt.GPT1(gpt.GPTConfig(53, 31, width, layers, heads, 4 * width, function, epsilon))
    variables = {"params": names(lambda x: x)}

    ids = rng.integers(0, 53, (3, length)).astype(np.int32)
    mask = np.arange(length) < np.array([[length], [length // 2], [3]])
    labels = torch.tensor(np.where(mask, ids, -100)).long()
    attention_mask = torch.tensor(mask.astype(int))
    out = theirs(torch.tensor(ids), attention_mask=attention_mask, labels=labels, output_hidden_states=True)
    out.loss.backward()
    logits, hidden = (one.detach().numpy() for one in (out.logits, out.hidden_states[-1]))
    batch = {"input_ids": ids, "attention_mask": mask}
    ours = jax.jit(model.apply)(variables, **batch)
    close("forward GPT-1 logits", ours.logits[mask], logits[mask], relative=1e-5)
    close("forward GPT-1 hidden", ours.last_hidden_state[mask], hidden[mask], relative=1e-5)
    loss = lambda v: pretrain.loss(model, v, batch, None, 0)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    close("loss of GPT-1", value, out.loss.item(), relative=1e-5)
    close_trees(gradients["params"], names(lambda x: x.grad), relative=1e-4)

    extend, cache = jax.jit(partial(model.apply, method="extend")), model.init_cache(1, length)
    for part in np.split(ids[:1], [length - 3], axis=1):  # theirs keeps no cache
        start = int(cache.used)
        mine, cache = extend(variables, part, cache)
        close("cached GPT-1", mine.logits[0], logits[0, start : int(cache.used)], relative=1e-5)


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
