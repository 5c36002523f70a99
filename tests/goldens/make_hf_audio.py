"""Makes hf_encodec/ and hf_mimi/: EncodecModel, causal and not, and MimiModel of random weights and odd sizes, as
save_pretrained writes them, with what they compute of waveforms that are no whole number of frames. Codebooks are
filled: as they are made, all codes are equal. Needs torch and transformers.

    waveforms [B S], z [B D T], codes [B Q T] of all levels, decoded [B S]
    first_codes, first_decoded      of as few levels as can be asked for
    loss, gradients/NAME            mean(weights * decoded), with one straight-through over all levels, plus the mean
                                    over levels of what is left of each; kernels without their normalisation
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import parametrize
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel

HERE = Path(__file__).parent
KEPT = {  # gradients that go into the file: some that lie far apart; all of them are compared live
    "encodec": ("encoder.layers.0.conv.weight", "encoder.layers.2.block.1.conv.weight", "encoder.layers.9.lstm",
                "decoder.layers.3.conv.weight", "decoder.layers.11.conv.bias"),
    "mimi": ("encoder.layers.0.conv.weight", "encoder_transformer.layers.0.self_attn.k_proj", "downsample", "upsample",
             "acoustic_residual_vector_quantizer.input_proj", "semantic_residual_vector_quantizer.output_proj",
             "decoder.layers.8.conv.weight", "layer_scale"),
}  # fmt: skip


def encodec(causal: bool) -> EncodecModel:
    return EncodecModel(
        EncodecConfig(
            sampling_rate=8000, upsampling_ratios=[3, 2], num_filters=4, num_residual_layers=2, hidden_size=6,
            codebook_size=16, num_lstm_layers=2, use_causal_conv=causal, use_conv_shortcut=causal,
            pad_mode="reflect" if causal else "constant", target_bandwidths=[5.4, 16.2],
        )
    )  # fmt: skip


def mimi() -> MimiModel:
    return MimiModel(
        MimiConfig(
            sampling_rate=8000, upsampling_ratios=[3, 2], num_filters=4, hidden_size=16, codebook_size=16,
            codebook_dim=6, vector_quantization_hidden_dimension=6, num_quantizers=4, num_semantic_quantizers=1,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20, sliding_window=3,
            upsample_groups=8, attn_implementation="eager",
        )
    )  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    """Weights; and codebooks about as wide as what they quantise."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 0.5 if "layer_scale" in name else 1.0 if "original0" in name or "layernorm.weight" in name else 0.0
            p.copy_(mean + torch.randn(p.shape) * 0.2)
        for name, p in model.named_buffers():
            if name.endswith(("cluster_size", "cluster_usage")):
                p.uniform_(0.3, 3.0)
            elif name.endswith((".embed", ".embed_avg", ".embed_sum")):
                p.normal_(std=0.6)


def codebooks(model: torch.nn.Module) -> list[list]:
    """Levels that follow each other's residuals, in the order of ids."""
    if isinstance(model, EncodecModel):
        return [list(model.quantizer.layers)]
    both = model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer
    return [list(part.layers) for part in both]


def latents(model: torch.nn.Module, waveforms: torch.Tensor) -> torch.Tensor:
    """[B S] -> [B D T]"""
    out = model.encoder(waveforms[:, None])
    return out if isinstance(model, EncodecModel) else out.latents


def sound(model: torch.nn.Module, quantised: torch.Tensor, length: int) -> torch.Tensor:
    out = model.decoder(quantised)
    return (out if isinstance(model, EncodecModel) else out.audio_values)[:, 0, :length]


def through(levels: list, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B D T] -> what facebookresearch/audiocraft's quantiser gives in training, and its loss."""
    residual, total, losses = z, torch.zeros_like(z), []
    for level in levels:
        code = level.decode(level.encode(residual)).detach()
        losses.append(torch.nn.functional.mse_loss(residual, code))
        residual, total = residual - code, total + code
    return z + (total - z).detach(), torch.stack(losses).mean()


def training(model: torch.nn.Module, waveforms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    z = latents(model, waveforms)
    if isinstance(model, EncodecModel):
        quantised, loss = through(codebooks(model)[0], z)
    else:
        parts = model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer
        found = [through(list(part.layers), part.input_proj(z)) for part in parts]
        quantised = sum(part.output_proj(x) for part, (x, _) in zip(parts, found, strict=True))
        loss = sum(loss for _, loss in found)
    return (weights * sound(model, quantised, waveforms.shape[1])).mean() + loss


def gradients(model: torch.nn.Module, waveforms: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Of `training`, under the names of files; takes the normalisation of kernels away for good."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    loss = training(model, waveforms, weights)
    loss.backward()
    files = {"encoder.encoder_seanet": "encoder", "decoder.decoder_seanet": "decoder", "encoder.encoder_t": "encoder_t",
             "decoder.decoder_t": "decoder_t", "encoder.down": "down", "decoder.up": "up"}  # fmt: skip
    out = {}
    for name, p in model.named_parameters():
        for memory, file in files.items():
            name = name.replace(memory, file)
        out[name] = p.grad
    return loss.detach(), out


def make(folder: Path, model: torch.nn.Module, kept: tuple[str, ...]) -> None:
    randomise(model)
    model.eval().save_pretrained(folder)
    waveforms, weights = torch.randn(2, 101), torch.randn(2, 101)
    few = {"bandwidth": 5.4} if isinstance(model, EncodecModel) else {"num_quantizers": 1}
    all_ = {"bandwidth": 16.2} if isinstance(model, EncodecModel) else {}
    with torch.no_grad():
        z, out, first = (latents(model, waveforms), *(model(waveforms[:, None], **how) for how in (all_, few)))
    # EnCodec's have one more axis, of chunks.
    codes, first_codes = (x.audio_codes[0] if x.audio_codes.ndim == 4 else x.audio_codes for x in (out, first))
    assert all(len(torch.unique(codes[:, q])) > 3 for q in range(codes.shape[1]))
    loss, found = gradients(model, waveforms, weights)
    some = {f"gradients/{name}": x for name, x in found.items() if any(part in name for part in kept)}
    arrays = {
        "waveforms": waveforms, "weights": weights, "z": z, "codes": codes, "first_codes": first_codes,
        "decoded": out.audio_values[:, 0], "first_decoded": first.audio_values[:, 0], "loss": loss, **some,
    }  # fmt: skip
    np.savez_compressed(folder / "outputs.npz", **{name: x.numpy() for name, x in arrays.items()})


if __name__ == "__main__":
    torch.manual_seed(0)
    make(HERE / "hf_encodec" / "causal", encodec(True), KEPT["encodec"])
    make(HERE / "hf_encodec" / "symmetric", encodec(False), KEPT["encodec"])
    make(HERE / "hf_mimi", mimi(), KEPT["mimi"])
