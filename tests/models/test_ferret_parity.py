"""Ferret next to apple/ml-ferret's own sampler and splice, live: random sizes; the towers are transformers'.

git clone https://github.com/apple/ml-ferret
FERRET_CHECKOUT=ml-ferret python -m pytest -m parity tests/models/test_ferret_parity.py
"""

import importlib.util
import os
import types
from pathlib import Path

import ferret_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import hf_tower, linear
from closeness import close, close_trees
from lm_names import llama as named_llama

from mmjax.models import ferret, llama, llava, vit
from mmjax.nn.mlp import quick_gelu

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("FERRET_CHECKOUT" not in os.environ, reason="FERRET_CHECKOUT names no clone of apple/ml-ferret"),
]
MAKE = Path(__file__).parents[1] / "goldens" / "make_ferret.py"
PLACEHOLDER, IGNORED = -200, -100


@pytest.fixture
def original(monkeypatch):
    """ferret_arch.py, whose random numbers are the first index; make_ferret.py reads it."""
    spec = importlib.util.spec_from_file_location("make_ferret", MAKE)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    arch = make.module(Path(os.environ["FERRET_CHECKOUT"]) / "ferret/model/ferret_arch.py")
    arch |= {"IMAGE_TOKEN_INDEX": PLACEHOLDER, "IGNORE_INDEX": IGNORED}
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, **_: torch.zeros(shape, dtype=torch.long))
    arch["randomise"] = make.randomise
    return arch


def numpy_of(network, gradient: bool = False) -> dict[str, np.ndarray]:
    return {n: (x.grad if gradient else x.detach()).numpy() for n, x in network.named_parameters()}


def sampler_of(arch: dict, seed: int, mode: str, width: int, out: int):
    """Their sampler, ours, and points [regions N 2] that are handed to theirs in place of pixels."""
    rng = np.random.default_rng(seed)
    points = int(rng.integers(20, 40))
    anchors = [int(x) for x in rng.integers((9, 3), (19, 8))]
    neighbours = [int(rng.integers(2, 9)), int(rng.integers(2, anchors[0]))]
    theirs = arch["GeoRegionSampler"](width, out, points, anchors, neighbours, mode)
    arch["randomise"](theirs, seed)
    given = rng.random((3, points, 2)).astype(np.float32)
    again = iter(given)
    arch["rand_sample_repeat"] = lambda x, count: torch.tensor(next(again))
    pool = {"max": ferret.max_pool, "mean": ferret.mean_pool}[mode]
    config = ferret.SamplerConfig(points, tuple(anchors), tuple(neighbours), pool, transposed=True)
    return theirs, config, given


@pytest.mark.parametrize(("seed", "mode"), [(0, "max"), (1, "mean"), (2, "max"), (3, "mean")])
def test_the_sampler_and_its_gradients(original, seed, mode):
    rng = np.random.default_rng(seed + 50)
    side, width, out = (int(x) for x in rng.integers((3, 5, 4), (8, 20, 15)))
    theirs, config, points = sampler_of(original, seed, mode, width, out)
    maps = rng.normal(size=(2, side * side, width)).astype(np.float32)
    given, one = torch.tensor(maps, requires_grad=True), torch.ones(4, 3)
    found = theirs(list(given), [[one, one], [one]], torch.float32, torch.float32)
    result = torch.cat(found)
    weight = rng.normal(size=tuple(result.shape)).astype(np.float32)
    (result * torch.tensor(weight)).sum().backward()

    module, rows = ferret.Sampler(config, out), np.stack([points[:2], points[[2, 0]]])

    def inner(params, maps):
        made = module.apply({"params": params}, maps, rows)
        made = jnp.stack([made[0, 0], made[0, 1], made[1, 0]])
        return jnp.sum(made * weight), made

    params = ferret_names.sampler(numpy_of(theirs))
    (_, ours), (by_params, by_maps) = jax.jit(jax.value_and_grad(inner, (0, 1), has_aux=True))(params, maps)
    close("regions", ours, result.detach().numpy(), relative=1e-5)
    close("gradient of the map", by_maps, given.grad.numpy(), relative=1e-4)
    close_trees(by_params, ferret_names.sampler(numpy_of(theirs, gradient=True)), relative=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_with_the_originals_splice(original, seed):
    vision = {"hidden_size": 12, "intermediate_size": 21, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**vision, image_size=15, patch_size=5, attn_implementation="eager")
    )
    sizes = {"hidden_size": 16, "intermediate_size": 27, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **sizes, vocab_size=31, num_key_value_heads=4, tie_word_embeddings=False, attn_implementation="eager"
        )
    )
    projector = torch.nn.Linear(12, 16)
    sampler, config, points = sampler_of(original, seed, "max", 12, 16)
    for i, part in enumerate((tower, text, projector)):
        original["randomise"](part, 10 * seed + i)

    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, 15, 15, 3)).astype(np.float32)
    words = rng.integers(4, 29, (2, 11))
    words[:, 0], words[:, 1] = 1, PLACEHOLDER
    words[0, 4] = words[0, 6] = words[1, 3] = 30
    labels = np.where(np.arange(11) >= 8, words, IGNORED)

    class See(torch.nn.Module):
        def forward(self, images):
            return tower(images, output_hidden_states=True).hidden_states[-2][:, 1:].detach()

    see = See()
    parts = types.SimpleNamespace(
        embed_tokens=text.model.embed_tokens, mm_projector=projector, region_geo_sampler=sampler,
        get_vision_tower=lambda: see,
    )  # fmt: skip

    class Holder(original["FERRETMetaForCausalLM"]):
        config = types.SimpleNamespace(region_geo_sampler=True, im_region_fea_token=30)
        device = "cpu"

        def get_model(self):
            return parts

    one = torch.ones(4, 3)
    _, _, _, embeds, theirs = Holder().prepare_inputs_labels_for_multimodal(
        torch.tensor(words), torch.ones(2, 11, dtype=torch.bool), None, torch.tensor(labels),
        torch.tensor(images.transpose(0, 3, 1, 2)), [[one, one], [one]],
    )  # fmt: skip
    out = text(inputs_embeds=embeds, labels=theirs)
    out.loss.backward()

    towers = llava.LlavaConfig(
        vit.ViTConfig(15, 5, width=12, depth=3, num_heads=2, hidden=21, activation=quick_gelu, epsilon=1e-5),
        llama.LlamaConfig(31, 64, width=16, depth=2, num_heads=4, num_kv_heads=4, head_dim=4, hidden=27),
        image_token=3,
        projector=llava.linear,
    )
    model = ferret.Ferret(ferret.FerretConfig(towers, 30, sampler=config))
    ids = np.array([llava.expanded(row.tolist(), PLACEHOLDER, 9) for row in words])
    batch = {
        "input_ids": np.where(ids == PLACEHOLDER, 3, ids).astype(np.int32),
        "spoken": theirs.numpy() != IGNORED,
        "images": images,
        "points": np.stack([points[:2], points[[2, 0]]]),
        "starts": np.zeros((2, 2, 2), int),
    }
    ferret.check_regions(model.config, batch["input_ids"], [2, 1])

    def named(gradient: bool) -> dict:
        return {
            "projector": linear({f"x.{n}": x for n, x in numpy_of(projector, gradient).items()}, "x"),
            "regions": ferret_names.sampler(numpy_of(sampler, gradient)),
            "language": named_llama(numpy_of(text, gradient)),
        }

    seen = {n.removeprefix("vision_model."): x for n, x in numpy_of(tower).items()}
    params = named(False) | {"vision": hf_tower({f"x.{n}": x for n, x in seen.items()}, "x")}
    value, found = jax.jit(jax.value_and_grad(lambda v: ferret.loss(model, v, batch, jax.random.key(0), 0)[0]))(
        {"params": params}
    )
    close("loss", value, out.loss.item(), relative=1e-5)
    gradients = {part: tree for part, tree in found["params"].items() if part != "vision"}
    close_trees(gradients, named(True), relative=1e-4)
