"""Q-Former next to transformers, live: random sizes and weights, through load_hf and back through save_hf."""

import jax
import numpy as np
import pytest
import qformer_names
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import qformer
from mmjax.ops import masks

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity
QUERIES, WORDS = 3, 4


def randomise(model) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * 0.3)


def original(seed: int, every: int, depth: int, text: bool) -> "transformers.Blip2QFormerModel":
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4))
    config = transformers.Blip2QFormerConfig(
        vocab_size=31, hidden_size=heads * 6, num_attention_heads=heads, num_hidden_layers=depth, intermediate_size=23,
        max_position_embeddings=9, cross_attention_frequency=every, encoder_hidden_size=13, use_qformer_text_input=text,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.Blip2QFormerModel(config).eval()
    randomise(model)
    return model


def their_mask(mask: masks.Mask, batch: int) -> "torch.Tensor":
    """[B 1 T T] to be added to the scores."""
    length = QUERIES + WORDS
    dense = np.broadcast_to(mask.dense(length, length), (batch, 1, length, length))
    return torch.tensor(np.where(dense, 0.0, torch.finfo(torch.float32).min), dtype=torch.float32)


@pytest.mark.parametrize("kind", [qformer.matching, qformer.captioning])
@pytest.mark.parametrize(("seed", "every", "depth"), [(0, 1, 2), (1, 2, 3), (2, 3, 3)])
def test_forward_and_gradients_in_both_modes(tmp_path, seed, every, depth, kind):
    theirs = original(seed, every, depth, text=True)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    rng, width = np.random.default_rng(seed), model.config.width
    embeds = rng.normal(size=(2, QUERIES + WORDS, width)).astype(np.float32)
    states, factor = rng.normal(size=(2, 5, 13)).astype(np.float32), rng.normal(size=embeds.shape).astype(np.float32)
    valid = np.array([[True] * 4, [True, True, False, False]])
    factor[:, QUERIES:][~valid] = 0
    mask = kind(valid, QUERIES)
    out = theirs(
        query_embeds=torch.tensor(embeds), query_length=QUERIES, encoder_hidden_states=torch.tensor(states),
        attention_mask=their_mask(mask, 2),
    ).last_hidden_state  # fmt: skip
    (out * torch.tensor(factor)).sum().backward()
    flat = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    expected = {
        "norm": {"scale": flat["layernorm.weight"], "bias": flat["layernorm.bias"]},
        **qformer_names.blocks(flat, "encoder.layer", "attention", depth, every),
    }

    def value(params):
        out = model.apply({"params": params}, embeds[:, :QUERIES], states, None, embeds[:, QUERIES:], mask)
        return (out.last_hidden_state * factor).sum(), out.last_hidden_state

    (_, ours), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])
    counted = factor[..., 0] != 0
    close("states", np.asarray(ours)[counted], out.detach().numpy()[counted], relative=1e-5)
    close_trees(gradients, expected, relative=1e-4)


def test_queries_alone_without_text_weights(tmp_path):
    theirs = original(4, 2, 4, text=False)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(2, QUERIES, model.config.width)).astype(np.float32)
    states = rng.normal(size=(2, 5, 13)).astype(np.float32)
    with torch.no_grad():
        out = theirs(query_embeds=torch.tensor(queries), encoder_hidden_states=torch.tensor(states)).last_hidden_state
    close("states", model.apply(variables, queries, states).last_hidden_state, out.numpy(), relative=1e-5)


@pytest.mark.parametrize("kind", ["Blip2ForImageTextRetrieval", "Blip2ForConditionalGeneration"])
def test_transformers_reads_what_is_written(tmp_path, kind):
    folder = {"Blip2ForImageTextRetrieval": "hf_blip2_retrieval", "Blip2ForConditionalGeneration": "hf_blip2"}[kind]
    model, variables = weights.load_hf(f"tests/goldens/{folder}")
    weights.save_hf(tmp_path, model, variables)
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    golden = np.load(f"tests/goldens/{folder}/outputs.npz")
    given = {
        "pixel_values": torch.tensor(golden["images"].transpose(0, 3, 1, 2)),
        "input_ids": torch.tensor(golden["input_ids"]),
        "attention_mask": torch.tensor(golden["attention_mask"].astype(int)),
    }
    name, wanted = ("logits_per_image", "itc") if kind.endswith("Retrieval") else ("logits", "logits")
    with torch.no_grad():
        out = theirs.eval()(**given)[name].numpy()
    close(wanted, out, golden[wanted], relative=1e-5)
