"""LLaVA next to transformers' LlavaForConditionalGeneration, live: random sizes and weights, through load_hf."""

from functools import partial

import jax
import numpy as np
import pytest
from closeness import close, close_trees
from llava_names import llava as named

from mmjax import weights
from mmjax.models import llava
from mmjax.nn import sampling

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity
V, IMAGE = 53, 52
CASES = [(0, -2, "default", 2), (1, [-3, -1], "full", 4), (2, 1, "default", 1)]  # seed, layers, strategy, key heads


def original(seed: int, layers, strategy: str, kv_heads: int):
    import lm_parity

    vision = transformers.CLIPVisionConfig(
        image_size=14, patch_size=7, hidden_size=24, intermediate_size=33, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=24,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=V, max_position_embeddings=64, hidden_size=32, intermediate_size=45, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=kv_heads, tie_word_embeddings=False, pad_token_id=None,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=layers,
        vision_feature_select_strategy=strategy, image_seq_length=5 if strategy == "full" else 4,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    return lm_parity.randomise(model, seed)


def rows(theirs, seed: int):
    """A picture, none, two pictures; padded on the right."""
    rng, picture = np.random.default_rng(seed), [IMAGE] * theirs.config.image_seq_length
    words = lambda n: rng.integers(1, V - 1, n).tolist()  # noqa: E731
    texts = [[*words(2), *picture, *words(5)], words(4), [*picture, *words(3), *picture, *words(4)]]
    length = max(map(len, texts))
    ids = np.array([text + [0] * (length - len(text)) for text in texts], np.int32)
    mask = np.arange(length) < np.array([[len(text)] for text in texts])
    spoken = mask & (ids != IMAGE) & (np.arange(length) >= np.array([[len(text) - 3] for text in texts]))
    return ids, mask, spoken, rng.normal(size=(3, 14, 14, 3)).astype(np.float32)


def channels_first(images: np.ndarray):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(("seed", "layers", "strategy", "kv_heads"), CASES)
def test_everything_equals_transformers(tmp_path, seed, layers, strategy, kv_heads):
    theirs = original(seed, layers, strategy, kv_heads)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    ids, mask, spoken, images = rows(theirs, seed)
    by_row = llava.by_row(model.config, ids, images)
    labels = torch.tensor(np.where(spoken, ids, -100)).long()
    out = theirs(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), labels=labels,
        pixel_values=channels_first(images),
    )  # fmt: skip
    out.loss.backward()
    ours = jax.jit(model.apply)(variables, ids, by_row, mask)
    close("forward logits", ours.logits[mask], out.logits.detach().numpy()[mask], relative=1e-5)
    batch = {"input_ids": ids, "attention_mask": mask, "spoken": spoken, "images": by_row}
    value, gradients = jax.jit(jax.value_and_grad(lambda v: llava.loss(model, v, batch, None, 0)[0]))(variables)
    close("loss", value, out.loss.item(), relative=1e-5)
    # What is not read has no gradient there: the last block and norm of the tower.
    grads = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in theirs.named_parameters()}
    close_trees(gradients["params"], named({file_name(n): g.numpy() for n, g in grads.items()}), relative=1e-4)

    prompt, extend = int(mask[0].sum()) - 3, jax.jit(partial(model.apply, method="extend"))
    cache, past = model.init_cache(1, 16), None
    with torch.no_grad():
        for start, stop in [(0, prompt), *((i, i + 1) for i in range(prompt, prompt + 3))]:
            part, first = ids[:1, start:stop], start == 0
            pixels = {"pixel_values": channels_first(images[:1])} if first else {}
            step = theirs(input_ids=torch.tensor(part), past_key_values=past, use_cache=True, **pixels)
            past = step.past_key_values
            mine, cache = extend(variables, part, cache, images=by_row[:1, :1] if first else None)
            close("cached logits", mine.logits, step.logits.numpy(), relative=1e-5)
        given = {"input_ids": torch.tensor(ids[:1, :prompt]), "pixel_values": channels_first(images[:1])}
        greedy = theirs.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    inputs = {"images": by_row[:1, :1]}
    said = sampling.generate(model, variables, ids[:1, :prompt], max_new_tokens=6, inputs=inputs)
    np.testing.assert_array_equal(said.tokens, greedy.numpy()[:, prompt:])


def file_name(name: str) -> str:
    """Of a parameter at run time -> as files have it."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


@pytest.mark.parametrize(("seed", "layers", "strategy", "kv_heads"), CASES)
def test_transformers_reads_what_we_write(tmp_path, seed, layers, strategy, kv_heads):
    theirs = original(seed, layers, strategy, kv_heads)
    theirs.save_pretrained(tmp_path / "theirs")
    weights.save_hf(tmp_path / "ours", *weights.load_hf(tmp_path / "theirs"))
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    ids, mask, _, images = rows(theirs, seed)
    given = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask.astype(int)),
        "pixel_values": channels_first(images),
    }
    assert torch.equal(theirs(**given).logits, again.eval()(**given).logits)
