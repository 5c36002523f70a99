"""Makes hf_llava/, hf_llava_legacy/ and llava.npz: tiny LLaVAs with what the originals compute from them.

Needs torch and transformers, and for llava.npz a checkout of haotian-liu/LLaVA (its llava/model/llava_arch.py):

    python tests/goldens/make_llava.py [CHECKOUT]

hf_llava*/outputs.npz, of transformers' LlavaForConditionalGeneration, V 37 words, 4 tokens a picture:
    input_ids, attention_mask [B T], images [I H W 3] normalised, labels [B T] aligned with input_ids (-100: none)
    logits [B T V], loss [], gradient/NAME of some parameters, generated [1 N]: greedily, after row 0 but its last three
llava.npz, of the authors' prepare_inputs_labels_for_multimodal on a stub: S places a row, -200 a picture
    embed [V W], features [I N W], input_ids, attention_mask, labels [B S]
    inputs_embeds [B L W], out_labels, out_mask [B L]: what the language model is given, padded on the right
"""

import ast
import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
V, IMAGE = 37, 36
VISION = {
    "image_size": 12, "patch_size": 6, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3, "projection_dim": 12,
}  # fmt: skip
TEXT = {
    "vocab_size": V, "max_position_embeddings": 64, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
GRADIENTS = (
    "model.multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_2.bias",
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight", "model.vision_tower.encoder.layers.1.self_attn.q_proj.weight",
    "model.language_model.layers.1.self_attn.q_proj.weight", "model.language_model.embed_tokens.weight",
)  # fmt: skip


def rows(per_image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, two pictures, none; padded on the right."""
    picture = [IMAGE] * per_image
    texts = [[1, *picture, 5, 6, 7, 8, 2], [1, 9, *picture, 4, *picture, 11, 12, 2], [1, 20, 21, 22, 23, 2]]
    length = max(len(text) for text in texts)
    ids = np.array([text + [0] * (length - len(text)) for text in texts])
    mask = np.array([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    learned = np.cumsum(ids[:, ::-1] != 0, axis=1)[:, ::-1] <= 3  # the last three
    return ids, mask, np.where((mask == 1) & learned & (ids != IMAGE), ids, -100)


def made(seed: int, layer, strategy: str, tied: bool) -> transformers.LlavaForConditionalGeneration:
    per_image = 5 if strategy == "full" else 4
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**{**TEXT, "tie_word_embeddings": tied}),
        image_token_index=IMAGE, vision_feature_layer=layer, vision_feature_select_strategy=strategy,
        image_seq_length=per_image, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def outputs(model: transformers.LlavaForConditionalGeneration, seed: int) -> dict[str, np.ndarray]:
    ids, mask, labels = rows(model.config.image_seq_length)
    images = np.random.default_rng(seed).normal(size=(3, 12, 12, 3)).astype(np.float32)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    given = [torch.from_numpy(x) for x in (ids, mask, labels)]
    out = model(input_ids=given[0], attention_mask=given[1], labels=given[2], pixel_values=pixels)
    out.loss.backward()
    parameters = dict(model.named_parameters())
    gradients = {f"gradient/{name}": parameters[name].grad.numpy() for name in GRADIENTS if name in parameters}
    prompt = given[0][:1, : mask[0].sum() - 3]  # without padding, which transformers wants on the left
    with torch.no_grad():
        generated = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=pixels[:1], max_new_tokens=6,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return {
        "input_ids": ids.astype(np.int32), "attention_mask": mask.astype(bool), "labels": labels.astype(np.int32),
        "images": images, "logits": out.logits.detach().numpy(), "loss": out.loss.detach().numpy(), **gradients,
        "generated": generated.numpy()[:, prompt.shape[1] :].astype(np.int32),
    }  # fmt: skip


LEGACY = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def legacy_name(name: str) -> str:
    old, new = next((old, new) for old, new in LEGACY if name.startswith(old))
    return new + name.removeprefix(old)


def folders() -> None:
    from safetensors.torch import save_file

    model = made(0, -2, "default", tied=False)
    model.save_pretrained(HERE / "hf_llava")
    np.savez_compressed(HERE / "hf_llava" / "outputs.npz", **outputs(model, 1))
    # As on the hub: names of transformers 4, layers counted from the first, the class token kept.
    model = made(2, [2, -1], "full", tied=False)
    model.save_pretrained(HERE / "hf_llava_legacy")
    tensors = {legacy_name(name): x.contiguous() for name, x in model.state_dict().items()}
    save_file(tensors, HERE / "hf_llava_legacy" / "model.safetensors", metadata={"format": "pt"})
    np.savez_compressed(HERE / "hf_llava_legacy" / "outputs.npz", **outputs(model, 3))


def splice(checkout: Path) -> None:
    """Runs the authors' function alone: their module wants the whole library."""
    source = (checkout / "llava" / "model" / "llava_arch.py").read_text()
    tree = ast.parse(source)
    meta = next(x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == "LlavaMetaForCausalLM")
    meta.bases, meta.keywords = [], []
    names = {
        "torch": torch,
        "IGNORE_INDEX": -100,
        "IMAGE_TOKEN_INDEX": -200,
        "abstractmethod": lambda f: f,
        "ABC": object,
    }
    exec(compile(ast.Module([meta], []), "llava_arch", "exec"), names)
    rng = np.random.default_rng(4)
    embed, features = (rng.normal(size=shape).astype(np.float32) for shape in ((V, 6), (4, 3, 6)))

    class Stub(names["LlavaMetaForCausalLM"]):
        device = torch.device("cpu")
        config = types.SimpleNamespace(
            tune_mm_mlp_adapter=False, mm_use_im_start_end=False, tokenizer_padding_side="right",
            tokenizer_model_max_length=None,
        )  # fmt: skip

        def get_model(self):
            return types.SimpleNamespace(embed_tokens=lambda ids: torch.from_numpy(embed)[ids])

        def get_vision_tower(self):
            return object()

        def encode_images(self, images):
            return torch.from_numpy(features)

    ids = np.array([[1, -200, 5, 6, 7, 8, 2], [1, 9, -200, 4, -200, 11, 2], [1, 20, 21, 2, 0, 0, 0]])
    mask = np.array([[1] * 7, [1] * 7, [1] * 4 + [0] * 3]).astype(bool)
    labels = np.where(mask & (ids > 4), ids, -100)
    given = [torch.from_numpy(x) for x in (ids, mask, labels)]
    _, _, out_mask, _, embeds, out_labels = Stub().prepare_inputs_labels_for_multimodal(
        given[0], None, given[1], None, given[2], torch.zeros(4, 3, 2, 2)
    )
    np.savez_compressed(
        HERE / "llava.npz", embed=embed, features=features, input_ids=ids, attention_mask=mask, labels=labels,
        inputs_embeds=embeds.numpy(), out_labels=out_labels.numpy(), out_mask=out_mask.numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    folders()
    if len(sys.argv) > 1:
        splice(Path(sys.argv[1]))
