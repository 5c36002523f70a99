"""Transformer (2017) next to torch.nn.Transformer's parts and transformers.MarianMTModel, live: random sizes and
weights, Marian's through mmjax.weights.load_hf."""

from functools import partial

import jax
import numpy as np
import pytest
import transformer_names
from closeness import close, close_trees

from mmjax import weights
from mmjax.models import transformer
from mmjax.nn import beam

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity


def original(seed: int, activation: str):
    """Also leans towards the end token, so that texts end before they are cut."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    heads, hidden = int(rng.integers(1, 5)), int(rng.integers(20, 50))
    config = transformers.MarianConfig(
        vocab_size=43, d_model=heads * 10,
        encoder_layers=int(rng.integers(1, 4)), decoder_layers=int(rng.integers(1, 4)),
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=hidden, decoder_ffn_dim=hidden,
        activation_function=activation, scale_embedding=True, dropout=0.0, pad_token_id=42, decoder_start_token_id=42,
        eos_token_id=0, forced_eos_token_id=None, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" not in name:
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                weight.copy_(mean + torch.randn(weight.shape) * 0.2)
        model.final_logits_bias.copy_(torch.randn(1, 43))
        model.final_logits_bias[0, 0] += 3.0
    return model


def inputs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids, labels = rng.integers(1, 42, (3, 11)), rng.integers(1, 42, (3, 9))
    labels[1, 5:], labels[2, 1:] = -100, -100
    return ids.astype(np.int32), np.arange(11) < np.array([[11], [6], [1]]), labels.astype(np.int32)


@pytest.mark.parametrize(("seed", "activation"), [(0, "swish"), (1, "relu"), (2, "gelu")])
def test_everything_equals_marian(tmp_path, seed, activation):
    theirs = original(seed, activation)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    ids, mask, labels = inputs(seed)
    given = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
    out = theirs(**given, labels=torch.tensor(labels).long(), output_hidden_states=True)
    out.loss.backward()

    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch["decoder_input_ids"] = transformer.shift_right(labels, model.config.start_id)
    written = batch["decoder_input_ids"]
    ours = jax.jit(model.apply)(variables, ids, mask, decoder_input_ids=written)
    hidden = out.decoder_hidden_states[-1].detach().numpy()
    close("forward logits", ours.logits, out.logits.detach().numpy(), relative=1e-5)
    close("forward hidden", ours.last_hidden_state, hidden, relative=1e-5)
    loss = lambda v: transformer.loss(model, v, batch, jax.random.key(0), 0)[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    close("loss", value, out.loss.item(), relative=1e-5)
    del gradients["params"]["logit_bias"]  # a buffer there
    named = {n: w.grad.numpy() for n, w in theirs.named_parameters() if w.grad is not None}
    # torch gives the id that pads, which also starts texts, no gradient where it is looked up.
    gradients["params"]["embed"]["embedding"] = gradients["params"]["embed"]["embedding"].at[42].set(0)
    named["model.shared.weight"][42] = 0
    close_trees(gradients["params"], transformer_names.from_marian(named), relative=1e-4)

    extend, past = jax.jit(partial(model.apply, method="extend")), None
    cache = model.apply(variables, ids, mask, 9, method="start")
    with torch.no_grad():
        memory = theirs.get_encoder()(**given)
        for part in np.split(np.asarray(written), [3, 4, 5, 7], axis=1):
            step = theirs(
                encoder_outputs=memory, attention_mask=given["attention_mask"],
                decoder_input_ids=torch.tensor(part).long(), past_key_values=past, use_cache=True,
            )  # fmt: skip
            past, (mine, cache) = step.past_key_values, extend(variables, part, cache)
            close("cached logits", mine.logits, step.logits.numpy(), relative=1e-5)

    for beams, alpha in ((1, 0.0), (4, 0.0), (3, 1.0), (5, 0.7)):
        options = {"num_return_sequences": beams, "early_stopping": "never"} if beams > 1 else {}
        expected = theirs.generate(
            **given, num_beams=beams, length_penalty=alpha, max_new_tokens=10, do_sample=False, **options
        )[:, 1:].numpy()  # fmt: skip
        found = transformer.translate(
            model, variables, ids, mask, beam.Search(length=10, beams=beams, alpha=alpha, penalty=beam.power)
        )
        tokens = np.asarray(found.tokens).reshape(3 * beams, 10)
        np.testing.assert_array_equal(tokens[:, : expected.shape[1]], expected)
        assert (tokens[:, expected.shape[1] :] == 42).all()


def test_transformers_reads_what_we_write(tmp_path):
    theirs = original(3, "swish")
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save_hf(tmp_path / "ours", *weights.load_hf(tmp_path / "theirs"))
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is transformers.MarianMTModel
    kept = [name for name in theirs.state_dict() if "embed_positions" not in name]
    for name in kept:
        assert torch.equal(theirs.state_dict()[name], again.state_dict()[name]), name
    ids, _, labels = (torch.tensor(x).long() for x in inputs(3))
    with torch.no_grad():  # positions are made anew from the sizes
        here, there = (
            model(input_ids=ids[:, :9], decoder_input_ids=labels[:1].repeat(3, 1)).logits for model in (theirs, again)
        )
    assert torch.equal(here, there)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_equal_torchs(norm_first):
    """One layer of each kind, with padding, from torch's own initial values made uneven."""
    torch.manual_seed(4)
    common = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first, "layer_norm_eps": 1e-5}
    layers = (
        torch.nn.TransformerEncoderLayer(20, 4, 36, **common),
        torch.nn.TransformerDecoderLayer(20, 4, 36, **common),
    )
    for layer in layers:
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    x, memory = torch.randn(2, 6, 20), torch.randn(2, 8, 20)
    mask = torch.arange(8) < torch.tensor([[8], [3]])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    read = layers[0](memory, src_key_padding_mask=~mask).detach().numpy()
    written = layers[1](x, memory, tgt_mask=causal, memory_key_padding_mask=~mask).detach().numpy()

    config = transformer.TransformerConfig(
        width=20, num_heads=4, hidden=36, use_bias=True, epsilon=1e-5, dropout=0.0, norm_first=norm_first
    )
    encoder, decoder = (
        transformer_names._torch_layer({f"x.{n}": w.detach().numpy() for n, w in layer.named_parameters()}, "x")
        for layer in layers
    )
    padding = transformer.masks.Padding(mask.numpy())
    ours = transformer.EncoderLayer(config, False).apply({"params": encoder}, memory.numpy(), padding)
    close("encoder layer", ours[mask.numpy()], read[mask.numpy()], relative=1e-5)
    ours = transformer.DecoderLayer(config, False).apply(
        {"params": decoder}, x.numpy(), transformer.masks.causal(), memory.numpy(), padding
    )
    close("decoder layer", ours, written, relative=1e-5)
