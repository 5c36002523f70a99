"""Makes transformer_torch.npz and hf_marian/ from random weights: the parts of torch.nn.Transformer, with embeddings,
positions and a head written out here, and MarianMTModel of transformers.

Sizes are odd and unequal, so that no axis can stand in for another; every weight is random, norms and biases too.
Needs torch and transformers; run as python tests/goldens/make_transformer.py
"""

import math
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

HERE = Path(__file__).parent
VOCAB, WIDTH, HEADS, HIDDEN, DEPTH, DECODER_DEPTH = 31, 12, 3, 20, 2, 3


def randomise(model: nn.Module, scale: float = 0.3) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" in name:  # sines and cosines
                continue
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * scale)


def numpy(prefix: str, tensors: dict) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def waves(length: int) -> torch.Tensor:
    """Section 3.5, entry by entry."""
    table = torch.zeros(length, WIDTH)
    for pos in range(length):
        for i in range(WIDTH // 2):
            table[pos, 2 * i] = math.sin(pos / 10000 ** (2 * i / WIDTH))
            table[pos, 2 * i + 1] = math.cos(pos / 10000 ** (2 * i / WIDTH))
    return table


class Whole(nn.Module):
    def __init__(self, norm_first: bool):
        super().__init__()
        common = {
            "dim_feedforward": HIDDEN, "dropout": 0.0, "activation": "relu", "layer_norm_eps": 1e-6,
            "batch_first": True, "norm_first": norm_first,
        }  # fmt: skip
        self.table = nn.Parameter(torch.zeros(VOCAB, WIDTH))
        last = lambda: nn.LayerNorm(WIDTH, eps=1e-6) if norm_first else None  # noqa: E731
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, HEADS, **common), DEPTH, last(), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, **common), DECODER_DEPTH, last())

    def forward(self, ids, mask, decoder_ids):
        embed = lambda ids: self.table[ids] * WIDTH**0.5 + waves(ids.shape[1])  # noqa: E731
        memory = self.encoder(embed(ids), src_key_padding_mask=~mask)
        causal = nn.Transformer.generate_square_subsequent_mask(decoder_ids.shape[1])
        x = self.decoder(embed(decoder_ids), memory, tgt_mask=causal, memory_key_padding_mask=~mask)
        return memory, x, x @ self.table.T


def torch_parts() -> None:
    torch.manual_seed(0)
    ids, decoder_ids = torch.randint(0, VOCAB, (3, 9)), torch.randint(0, VOCAB, (3, 7))
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    labels = torch.randint(0, VOCAB, (3, 7))
    labels[1, 4:], labels[2, 1:] = -100, -100
    arrays = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids, "labels": labels}
    arrays = numpy("inputs", arrays)
    for name, norm_first in (("post", False), ("pre", True)):
        model = Whole(norm_first)  # in train mode, where torch has one path only
        randomise(model)
        memory, hidden, logits = model(ids, mask, decoder_ids)
        loss = nn.functional.cross_entropy(logits.reshape(-1, VOCAB), labels.ravel(), label_smoothing=0.1)
        loss.backward()
        outputs = {"memory": memory, "hidden": hidden, "logits": logits, "loss": loss}
        arrays |= numpy(f"{name}/outputs", outputs) | numpy(f"{name}/weights", dict(model.named_parameters()))
        arrays |= numpy(f"{name}/gradients", {n: weight.grad for n, weight in model.named_parameters()})
    np.savez_compressed(HERE / "transformer_torch.npz", **arrays)


def marian() -> None:
    torch.manual_seed(3)
    config = transformers.MarianConfig(
        vocab_size=29, d_model=12, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3, encoder_ffn_dim=20,
        decoder_attention_heads=3, decoder_ffn_dim=20, activation_function="swish", scale_embedding=True, dropout=0.0,
        pad_token_id=28, decoder_start_token_id=28, eos_token_id=3, forced_eos_token_id=None,
        max_position_embeddings=40, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    randomise(model)
    with torch.no_grad():
        model.final_logits_bias.copy_(torch.randn(1, 29))
        model.final_logits_bias[0, 3] += 3.0  # so that texts end, and not all at once
    model.save_pretrained(HERE / "hf_marian")
    (HERE / "hf_marian" / "generation_config.json").unlink()
    ids, labels = torch.randint(4, 28, (4, 9)), torch.randint(4, 28, (4, 6))
    mask = torch.arange(9) < torch.tensor([[9], [5], [2], [1]])
    labels[1, 4:], labels[2, 1:] = -100, -100
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask.long(), labels=labels)
        arrays |= {"logits": out.logits, "memory": out.encoder_last_hidden_state, "loss": out.loss}
        for alpha in (0.0, 1.0):
            found = model.generate(
                input_ids=ids, attention_mask=mask.long(), num_beams=3, num_return_sequences=3, max_new_tokens=8,
                length_penalty=alpha, early_stopping="never", do_sample=False, return_dict_in_generate=True,
                output_scores=True,
            )  # fmt: skip
            arrays |= {f"tokens_{alpha}": found.sequences[:, 1:], f"scores_{alpha}": found.sequences_scores}
    np.savez_compressed(HERE / "hf_marian" / "outputs.npz", **{name: x.numpy() for name, x in arrays.items()})


if __name__ == "__main__":
    torch_parts()
    marian()
