"""Makes hf_qformer/, hf_blip2_retrieval/ and hf_blip2/: tiny models of transformers, random everywhere (its own queries
are zeros), with what it computes from them. Needs torch and transformers; run as

    python tests/goldens/make_hf_blip2.py

hf_qformer: texts go through it, every third block of 4 looks at the picture, 3 queries beside 4 embedded words, padding
in text and picture. hf_blip2: without texts, captions by a LLaMA; gradients of the loss for a few weights.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VISION = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
QFORMER = {
    "vocab_size": 23, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 14, "encoder_hidden_size": 12,
    "max_position_embeddings": 7, "num_hidden_layers": 3, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 29, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
IMAGE, QUERIES = 28, 3
GRADIENTS = {
    "query_tokens", "language_projection.weight", "vision_model.post_layernorm.bias",
    "qformer.encoder.layer.1.attention.attention.key.weight", "qformer.encoder.layer.0.intermediate_query.dense.bias",
    "qformer.encoder.layer.2.crossattention.output.dense.weight",
}  # fmt: skip


def images(seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """[2 8 8 3], normalised, and as transformers reads them."""
    x = np.random.default_rng(seed).normal(size=(2, 8, 8, 3)).astype(np.float32)
    return x, torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scales = name.endswith("weight") and "norm" in name.lower()
            p.copy_((1.0 if scales else 0.0) + 0.4 * torch.randn(p.shape))
    return model.eval()


def save(name: str, model: torch.nn.Module, outputs: dict) -> None:
    model.save_pretrained(HERE / name)
    np.savez_compressed(HERE / name / "outputs.npz", **outputs)


@torch.no_grad()
def hf_qformer() -> None:
    config = transformers.Blip2QFormerConfig(
        **QFORMER | {"num_hidden_layers": 4, "cross_attention_frequency": 3}, use_qformer_text_input=True
    )
    config._attn_implementation = "eager"
    model, rng = randomised(transformers.Blip2QFormerModel(config), 0), np.random.default_rng(0)
    embeds = rng.normal(size=(2, QUERIES + 4, 8)).astype(np.float32)
    states = rng.normal(size=(2, 5, 12)).astype(np.float32)
    text, picture = np.ones((2, 4), bool), np.ones((2, 5), bool)
    text[0, 2:] = picture[1, 3:] = False
    mask = np.concatenate([np.ones((2, QUERIES), bool), text], axis=1)
    both = model(
        query_embeds=torch.tensor(embeds), query_length=QUERIES, attention_mask=torch.tensor(mask),
        encoder_hidden_states=torch.tensor(states),
    ).last_hidden_state  # fmt: skip
    # With text beside the queries, transformers makes the picture's mask too long for the queries alone.
    alone = model(
        query_embeds=torch.tensor(embeds[:, :QUERIES]), encoder_hidden_states=torch.tensor(states),
        encoder_attention_mask=torch.tensor(picture),
    )  # fmt: skip
    words = model(query_embeds=torch.tensor(embeds[:, QUERIES:]), query_length=0, attention_mask=torch.tensor(text))
    outputs = {"both": both.numpy(), "alone": alone.last_hidden_state.numpy(), "words": words.last_hidden_state.numpy()}
    inputs = {"embeds": embeds, "states": states, "text_mask": text, "picture_mask": picture}
    save("hf_qformer", model, inputs | outputs)


def config(**fields) -> transformers.Blip2Config:
    made = transformers.Blip2Config(vision_config=VISION, num_query_tokens=QUERIES, text_config=LLAMA, **fields)
    made._attn_implementation = "eager"
    return made


@torch.no_grad()
def hf_blip2_retrieval() -> None:
    model = randomised(
        transformers.Blip2ForImageTextRetrieval(
            config(qformer_config=QFORMER | {"use_qformer_text_input": True}, image_text_hidden_size=6)
        ), 1,
    )  # fmt: skip
    rng, mask = np.random.default_rng(1), np.ones((2, 5), bool)
    mask[0, 3:] = False
    ids, (seen, pixels) = rng.integers(1, 23, (2, 5)) * mask, images(1)
    given = {
        "pixel_values": pixels, "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask.astype(int)),
    }  # fmt: skip
    itc, itm = model(**given), model(**given, use_image_text_matching_head=True)
    outputs = {
        "itc": itc.logits_per_image.numpy(), "image_embeds": itc.image_embeds.numpy(),
        "text_embeds": itc.text_embeds.numpy(), "itm": itm.logits_per_image.numpy(),
    }  # fmt: skip
    save("hf_blip2_retrieval", model, {"images": seen, "input_ids": ids, "attention_mask": mask} | outputs)


def hf_blip2() -> None:
    model = randomised(
        transformers.Blip2ForConditionalGeneration(config(qformer_config=QFORMER, image_token_index=IMAGE)), 2
    )
    rng, mask = np.random.default_rng(2), np.ones((2, 9), bool)
    mask[0, 7:] = False
    ids = rng.integers(1, 28, (2, 9))
    ids[:, :QUERIES] = IMAGE
    labels = np.where(mask, ids, -100)
    labels[:, : QUERIES + 1], labels[1, QUERIES + 1 : QUERIES + 3] = -100, -100
    (seen, pixels), prompt = images(3), torch.tensor(ids[:, : QUERIES + 1])
    out = model(
        pixel_values=pixels, input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)),
        labels=torch.tensor(labels),
    )  # fmt: skip
    out.loss.backward()
    with torch.no_grad():
        spoken = model.generate(
            pixel_values=pixels, input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5,
            min_new_tokens=5, do_sample=False,
        )  # fmt: skip
    gradients = {f"gradient/{n}": p.grad.numpy() for n, p in model.named_parameters() if n in GRADIENTS}
    if len(gradients) != len(GRADIENTS):
        raise RuntimeError(f"of {GRADIENTS} there are only {set(gradients)}")
    inputs = {"images": seen, "input_ids": ids, "attention_mask": mask, "labels": labels}
    outputs = {"logits": out.logits.detach().numpy(), "loss": out.loss.item(), "spoken": spoken.numpy()[:, -5:]}
    save("hf_blip2", model, inputs | outputs | gradients)


if __name__ == "__main__":
    hf_qformer()
    hf_blip2_retrieval()
    hf_blip2()
