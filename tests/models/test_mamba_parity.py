"""Mamba and Mamba-2 next to transformers' classes and mambapy, live: random sizes and weights, through load_hf."""

from functools import partial

import jax
import mamba_names
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.nn import sampling
from mmjax.objectives import pretrain
from mmjax.ops.selective_scan import selective_scan

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity

CASES = [("Mamba", 0), ("Mamba", 1), ("Mamba2", 2), ("Mamba2", 3)]


def original(kind: str, seed: int):
    rng = np.random.default_rng(seed)
    sizes = {
        "vocab_size": 53, "hidden_size": 24, "expand": int(rng.integers(1, 4)), "state_size": int(rng.integers(3, 20)),
        "num_hidden_layers": int(rng.integers(1, 4)), "conv_kernel": int(rng.integers(2, 6)), "pad_token_id": None,
        "layer_norm_epsilon": 10.0 ** -int(rng.integers(3, 7)), "bos_token_id": 51, "eos_token_id": 52,
    }  # fmt: skip
    if kind == "Mamba":
        sizes |= {"time_step_rank": int(rng.integers(1, 9)), "use_associative_scan": False}
    else:
        inner = 24 * sizes["expand"]
        sizes |= {"num_heads": inner // 6, "head_dim": 6, "n_groups": int(rng.choice([1, 2, 4])), "chunk_size": 5}
        sizes |= {"tie_word_embeddings": bool(seed % 2)}
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("A_log", "dt_bias", "dt_proj.bias")):  # exp(delta A) of a random A is 0 or 1
                weight.add_(torch.randn(weight.shape) * 0.3)
            else:
                weight.copy_(float("norm" in name or name.endswith(".D")) + torch.randn(weight.shape) * 0.2)
    return model.eval()


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_everything_equals_transformers(tmp_path, kind, seed):
    theirs = original(kind, seed)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 51, (3, 17)).astype(np.int32)
    mask = np.arange(17) < np.array([[17], [8], [1]])
    out = theirs(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)),
        labels=torch.tensor(np.where(mask, ids, -100)).long(), output_hidden_states=True,
    )  # fmt: skip
    out.loss.backward()
    batch = {"input_ids": ids, "attention_mask": mask}
    ours = jax.jit(model.apply)(variables, **batch)
    close("forward logits", ours.logits[mask], out.logits.detach().numpy()[mask], relative=1e-5)
    loss = lambda v: pretrain.loss(model, v, batch, None, 0)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    close("loss", value, out.loss.item(), relative=1e-5)
    theirs_gradients = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    close_trees(gradients["params"], getattr(mamba_names, kind.lower())(theirs_gradients), relative=1e-4)

    extend = jax.jit(partial(model.apply, method="extend"))
    cache, past = model.init_cache(3, 17), None
    with torch.no_grad():  # transformers' Mamba goes on from its cache one token at a time only
        for part in (ids[:, :13], *np.split(ids[:, 13:], 4, axis=1)):
            step = theirs(input_ids=torch.tensor(part), cache_params=past, use_cache=True)
            past, (mine, cache) = step.cache_params, extend(variables, part, cache)
            close("cached logits", mine.logits, step.logits.numpy(), relative=1e-5)

    left = {"input_ids": torch.tensor(ids[:, ::-1].copy()), "attention_mask": torch.tensor(mask[:, ::-1].astype(int))}
    greedy = theirs.generate(**left, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None).numpy()
    mine = sampling.generate(model, variables, ids[:, ::-1], mask[:, ::-1], max_new_tokens=5)
    np.testing.assert_array_equal(mine.tokens, greedy[:, 17:])


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_transformers_reads_what_we_write(tmp_path, kind, seed):
    theirs = original(kind, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save_hf(tmp_path / "ours", *weights.load_hf(tmp_path / "theirs"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(again) is type(theirs)
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    ids = torch.arange(20)[None]
    # The chunk, which is no part of the model, is another in what we write.
    np.testing.assert_allclose(again(ids).logits.detach(), theirs(ids).logits.detach(), rtol=1e-4, atol=1e-5)


def test_the_scan_and_its_gradients_equal_mambapy():
    pscan = pytest.importorskip("mambapy.pscan", reason="needs the [parity] extra").pscan
    rng = np.random.default_rng(0)
    x, delta, A, B, C = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 37, 6), (2, 37, 6), (6, 5), (2, 37, 5), (2, 37, 5))
    )
    delta, A = np.log1p(np.exp(delta)), -np.exp(A)
    given = [torch.tensor(one, requires_grad=True) for one in (x, delta, A, B, C)]
    tx, td, tA, tB, tC = given
    states = pscan(torch.exp(td[..., None] * tA), (td * tx)[..., None] * tB[:, :, None])  # [B L E N]
    theirs = (states @ tC[..., None])[..., 0]
    cotangent = rng.normal(size=x.shape).astype(np.float32)
    theirs.backward(torch.tensor(cotangent))
    ours, pull = jax.vjp(lambda *args: selective_scan(*args)[0], x, delta, A, B, C)
    close("forward y", ours, theirs.detach().numpy(), relative=1e-5)
    for name, one, tensor in zip(("x", "delta", "A", "B", "C"), pull(cotangent), given, strict=True):
        close(f"gradient {name}", one, tensor.grad.numpy(), relative=1e-5)
