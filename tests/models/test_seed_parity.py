"""SEED next to AILab-CVC/SEED's own code and transformers' Blip2QFormerModel, live: random sizes and weights.

git clone https://github.com/AILab-CVC/SEED
SEED_CHECKOUT=SEED python -m pytest -m parity tests/models/test_seed_parity.py
"""

import dataclasses
import functools
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from closeness import close

from mmjax import weights
from mmjax.models import qformer, seed, vit
from mmjax.nn.quantizers import Codebook
from mmjax.ops import masks
from mmjax.weights import engine
from mmjax.weights import seed as seed_weights

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
import seed_original  # noqa: E402

pytestmark = pytest.mark.parity
checkout = pytest.mark.skipif("SEED_CHECKOUT" not in os.environ, reason="SEED_CHECKOUT names no clone of SEED")


@pytest.fixture(autouse=True)
def modules():
    """Theirs and what stands in for their imports go when a test ends, and what they hide comes back."""
    before = dict(sys.modules)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("lavis", "timm", "fairscale", "qformer")]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def configs(s: seed_original.Sizes, reverse: bool, text: bool) -> tuple[qformer.RetrievalConfig, seed.SeedConfig]:
    hidden = int(s.image_width * 1.5)
    vision = vit.ViTConfig(s.side, 4, s.image_width, s.tower_depth, num_heads=2, hidden=hidden, epsilon=1e-5)
    former = qformer.QFormerConfig(
        32, s.image_width, s.vocab, s.length, s.width, s.depth, s.heads, s.hidden, start_id=0, dropout=0.0
    )  # fmt: skip
    backward = functools.partial(seed.Reverse, depth=s.reverse_depth)
    second = seed.SeedConfig(
        vision, former, lambda variables, batch: seed.Targets(batch["image"], batch.get("text")),
        Codebook(s.codes, s.code_dim, commitment=1.0, codebook=0.25), depth=s.blocks, image_dim=s.image_dim,
        image_head=backward if reverse else functools.partial(seed.Down, sizes=s.down), text_dim=s.text_dim,
        text_head=functools.partial(backward, queries=s.text_queries) if text else None,
    )  # fmt: skip
    return qformer.RetrievalConfig(vision, former, embed_dim=s.embed), second


def compared(model, theirs, loss, batch: dict, value, trainable: str) -> dict:
    """Loss and gradients; returns our variables."""
    variables = {**seed_weights.load(model, seed_original.parameters(theirs)), "target": {}}
    value.backward()
    wanted = engine.flatten(seed_weights.load(model, seed_original.gradients(theirs))["params"])

    def of(params):
        return loss(model, {"params": params, "target": {}}, batch, jax.random.key(0), 0)[0]

    found, gradients = jax.jit(jax.value_and_grad(of))(variables["params"])
    close("loss", found, value.detach(), relative=1e-5)
    for path, gradient in engine.flatten(gradients).items():
        if re.search(trainable, path):
            close(path, gradient, wanted[path], relative=1e-4, part="gradient")
    return variables


def pictures(s: seed_original.Sizes, rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.normal(size=(rows, s.side, s.side, 3)).astype(np.float32)


SIZES = [
    seed_original.Sizes(width=9, depth=2, image_width=8, tower_depth=1, codes=11, blocks=1),
    seed_original.Sizes(width=8, depth=3, heads=2, hidden=11, side=12, codes=5, code_dim=3, reverse_depth=3),
]


@checkout
@pytest.mark.parametrize("size", [0, 1])
def test_stage_1(tmp_path, size):
    s, rng, rows = SIZES[size], np.random.default_rng(size), 2 + size
    ids = rng.integers(1, s.vocab, (rows, s.length))
    mask = np.arange(s.length) < rng.integers(2, s.length, (rows, 1))
    images = pictures(s, rng, rows)
    with seed_original.one_process(tmp_path):
        theirs = seed_original.stage1(Path(os.environ["SEED_CHECKOUT"]), s, torch.tensor(ids), torch.tensor(mask).int())
        seed_original.randomise(theirs, size)
        shown = torch.tensor(images.transpose(0, 3, 1, 2).copy())
        value = theirs({"image": shown, "caption": list(range(rows))}).loss
        model = seed.Stage1(configs(s, False, False)[0])
        batch = {"images": images, "input_ids": ids.astype(np.int32), "attention_mask": mask}
        compared(model, theirs, seed.stage1_loss, batch, value, seed.STAGE1_TRAINABLE)


@checkout
@pytest.mark.parametrize(("size", "text", "reverse"), [(0, False, False), (1, True, True)])
def test_stage_2_and_what_ids_say(size, text, reverse):
    s, rng, folder = SIZES[size], np.random.default_rng(size), Path(os.environ["SEED_CHECKOUT"])
    images, image = pictures(s, rng, 2), rng.normal(size=(2, s.image_dim)).astype(np.float32)
    said = rng.normal(size=(2, s.text_queries, s.text_dim)).astype(np.float32) if text else None
    theirs = seed_original.randomise(seed_original.stage2(folder, s, image, said, reverse), size)
    shown = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    model = seed.Seed(configs(s, reverse, text)[1])
    batch = {"images": images, "image": image, **({"text": said} if text else {})}
    variables = compared(
        model, theirs, seed.loss, batch, theirs({"image": shown, "caption": None}).loss, seed.TRAINABLE
    )

    ids = jax.jit(functools.partial(model.apply, method="encode"))(variables, images)
    np.testing.assert_array_equal(ids, theirs.get_discrete_tokens(shown))
    released = seed_original.released(folder, s, reverse).eval()
    assert not released.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    any_ids = rng.integers(0, s.codes, (2, 32)).astype(np.int32)
    with torch.no_grad():
        wanted = released.get_codebook_entry(torch.tensor(any_ids).long())
    features = jax.jit(functools.partial(model.apply, method="features_of"))(variables, any_ids)
    close("features", features, wanted, relative=1e-5)


@pytest.mark.parametrize(("seed_of", "queries", "every", "depth"), [(0, 4, 1, 2), (1, 7, 2, 3)])
def test_causal_queries_of_any_number(tmp_path, seed_of, queries, every, depth):
    config = transformers.Blip2QFormerConfig(
        vocab_size=3, hidden_size=12, num_attention_heads=3, num_hidden_layers=depth, intermediate_size=17,
        cross_attention_frequency=every, encoder_hidden_size=11,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = seed_original.randomise(transformers.Blip2QFormerModel(config), seed_of)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    model = qformer.QFormer(dataclasses.replace(model.config, dropout=0.0))
    rng = np.random.default_rng(seed_of)
    embeds, states = (rng.normal(size=shape).astype(np.float32) for shape in ((2, queries, 12), (2, 5, 11)))
    later = torch.full((queries, queries), torch.finfo(torch.float32).min).triu(1).expand(2, 1, queries, queries)
    with torch.no_grad():
        wanted = theirs(torch.tensor(embeds), attention_mask=later, encoder_hidden_states=torch.tensor(states))
    tokens = functools.partial(model.apply, mask=masks.Causal())
    close("queries", jax.jit(tokens)(variables, embeds, states).queries, wanted.last_hidden_state, relative=1e-5)
