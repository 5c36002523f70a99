"""Shikra against shikras/shikra (stored outputs, tests/goldens/make_shikra.py); its tasks; what it says, read again."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shikra_names
from clip_names import group
from closeness import close, close_trees

from mmjax.evals import grounding
from mmjax.models import llama, llava, shikra, vit
from mmjax.nn import sampling
from mmjax.nn.mlp import quick_gelu
from mmjax.text import chat
from mmjax.text.coordinates import Bins
from mmjax.weights import shikra as weights

GOLDENS = Path(__file__).parents[1] / "goldens"
VISION = vit.ViTConfig(28, 14, width=12, depth=3, num_heads=3, hidden=20, activation=quick_gelu, epsilon=1e-5)
LANGUAGE = llama.LlamaConfig(40, 64, width=16, depth=2, num_heads=4, num_kv_heads=4, head_dim=4, hidden=22)
MODEL = shikra.Shikra(llava.LlavaConfig(VISION, LANGUAGE, image_token=37, projector=llava.linear))
BOX, POINT = [0.1, 0.25, 0.5, 0.75], [0.3, 0.6]


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "shikra.npz")


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": shikra_names.shikra(shikra_names.weights_of(golden))}


def test_logits_loss_and_gradients_equal_the_original(golden, variables):
    batch = shikra_names.batch_of(golden)
    batch["images"] = llava.by_row(MODEL.config, batch["input_ids"], golden["images"])
    assert batch["images"].shape[:2] == (3, 1)

    def value(params):
        out = MODEL.apply({"params": params}, batch["input_ids"], batch["images"], batch["attention_mask"])
        return shikra.loss(MODEL, {"params": params}, batch, None, 0)[0], out.logits

    (loss, logits), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])
    mask = batch["attention_mask"]
    close("logits", logits[mask], golden["logits"][mask], relative=1e-5)
    close("loss", loss, golden["loss"], relative=1e-5)
    frozen = {f"tower.{n}": x for n, x in shikra_names.group_of(shikra_names.weights_of(golden), "tower.").items()}
    theirs = shikra_names.shikra(group(golden, "gradients") | frozen)
    trained = ("language", "projector")  # the authors' tower gets no gradient
    close_trees(*({part: tree[part] for part in trained} for tree in (gradients, theirs)), relative=1e-4)


def test_weights_load_and_go_back_as_they_came(golden, variables):
    theirs = {n: x for n, x in shikra_names.weights_of(golden).items() if not n.startswith("tower.")}
    loaded = weights.load(MODEL, theirs, variables["params"]["vision"])
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    again = weights.save(MODEL, loaded)
    assert again.keys() == theirs.keys()
    for name, x in again.items():
        np.testing.assert_array_equal(x, theirs[name])
    with pytest.raises(ValueError, match="missing model.mm_projector.bias"):
        weights.load(MODEL, {n: x for n, x in theirs.items() if n != "model.mm_projector.bias"}, {})
    with pytest.raises(ValueError, match="one linear layer"):
        weights.rules(dataclasses.replace(MODEL.config, projector=llava.mlp))


def test_the_published_difference_is_applied_as_by_its_authors(golden):
    base, delta, target = (group(golden, f"delta_{kind}") for kind in ("base", "delta", "target"))
    found = weights.applied(base, delta)
    assert found.keys() == target.keys()
    for name, x in found.items():
        assert x.dtype == np.float16
        np.testing.assert_array_equal(x, target[name])
    with pytest.raises(ValueError, match=r"model.norm.weight is \[4\] in LLaMA and \[3\]"):
        weights.applied({**base, "model.norm.weight": np.zeros(4)}, delta)
    with pytest.raises(ValueError, match="holds more.weight, which is neither"):
        weights.applied(base, {"more.weight": np.zeros(4)})


def test_conversations_are_written_as_vicunas():
    for case in json.loads((GOLDENS / "shikra.json").read_text()):
        roles = ["user", "assistant"] * 2
        messages = [{"role": r, "content": text} for r, text in zip(roles, case["said"], strict=False)]
        pieces = chat.vicuna(messages, answer=len(messages) % 2 == 1)
        assert chat.text(pieces) == f"<s>{case['text']}"
        learned = [piece.text for piece in pieces if piece.learned]
        assert learned == [f" {m['content']}</s>" for m in messages if m["role"] == "assistant"]
    assert chat.text(chat.vicuna([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])).startswith(
        "<s>S USER: U ASSISTANT:"
    )


def test_new_ids_are_the_mean_of_those_before():
    rng = np.random.default_rng(0)
    embed, head = (rng.normal(size=shape).astype(np.float32) + 1 for shape in ((7, 3), (3, 7)))
    old = {"embed": {"embedding": embed}, "head": {"kernel": head}, "norm": 0}
    new = shikra.grown(old, jax.random.key(0))
    for table, before in ((new["embed"]["embedding"], embed), (new["head"]["kernel"].T, head.T)):
        assert table.shape == (10, 3)
        np.testing.assert_allclose(table[:7], before, rtol=1e-6)
        assert 0 < np.abs(table[7]).max() < 0.1
        np.testing.assert_allclose(table[8:], np.repeat(np.mean(table[:8], 0, keepdims=True), 2, 0), rtol=1e-5)
    assert new["norm"] == 0
    tied = shikra.grown({"embed": {"embedding": embed}}, jax.random.key(0))
    assert tied.keys() == {"embed"}


CASES = {
    "refer": shikra.refer("the red {cup}", BOX),
    "refer_asked": shikra.refer("the cup", which=3),
    "describe": shikra.describe(BOX, "a cup"),
    "region": shikra.describe(BOX, "a cup", sentences=shikra.REGION),
    "spot": shikra.spot("A cat<boxes> on two mats<boxes>.", [[BOX], [BOX, BOX]]),
    "caption": shikra.describe_all("A cat."),
    "ask_point": shikra.ask("What is this?<points>", "a cup", points=[[POINT]]),
    "choose": shikra.choose("Which is it?", [[0, 0, 1, 1], BOX], 1),
    "choose_point": shikra.choose("Which is it?", [[0, 0, 1, 1], BOX], POINT, as_point=True),
    "reason": shikra.reason("Why?", "A cat<boxes> sleeps.", "night", sentences=shikra.REASON_BOXES, boxes=[[BOX]]),
}
WRITTEN = "[0.100,0.250,0.500,0.750]"


def test_tasks_put_places_where_they_belong():
    said = {name: [message["content"] for message in messages] for name, messages in CASES.items()}
    for name, (question, *answer) in said.items():
        assert question.count("<image>") == 1, name
        assert len(answer) == (name != "refer_asked")
        assert not any(
            left in "".join(said[name]) for left in ("<boxes>", "<points>", "<expr>", "<objs>", "<question>")
        )
    assert "the red {cup}" in said["refer"][0]
    assert said["refer"][1] == f"Answer: {WRITTEN} ."
    assert said["describe"][1] == "a cup"
    assert WRITTEN in said["region"][0]
    assert said["spot"][1] == f"A cat{WRITTEN} on two mats{WRITTEN[:-1]};{WRITTEN[1:]}."
    assert "[0.300,0.600]" in said["ask_point"][0]
    assert grounding.answer_of(said["ask_point"][1]) == "a cup"
    assert said["choose"][0].count("[") == 2
    assert grounding.one_box(said["choose"][1]) == BOX
    assert grounding.one_point(said["choose_point"][1]) == POINT
    assert grounding.answer_of(said["reason"][1]) == "night"
    assert said["reason"][1].startswith(f"A cat{WRITTEN} sleeps.")
    binned = shikra.refer("it", BOX, form=Bins(5))[1]["content"]
    assert binned == "Answer: <b_st><bin_0> <bin_1> <bin_2> <bin_3><b_ed> ."
    with pytest.raises(ValueError, match="0 times <boxes>, but 1 groups"):
        shikra.spot("A cat.", [[BOX]])
    asked = shikra.with_pictures(said["caption"][0])
    assert asked.count("<im_start><im_patch><im_end>") == 1


def test_what_is_generated_is_read_as_boxes(monkeypatch):
    given = {}

    def generate(*args, **options):
        given.update(options)
        return sampling.Generated(jnp.array([[7, 8, 2, 0], [9, 2, 0, 0]]), jnp.array([3, 2]))

    monkeypatch.setattr(shikra, "generate", generate)
    words = {7: "Answer: [0.100,0.250,", 8: "0.500,0.750] at [0.5,0.5]", 9: "[0.1, 0.2]", 2: "."}
    prompts = {"input_ids": np.array([[1], [1]]), "images": "pictures"}
    found = shikra.ground(MODEL, {}, prompts, lambda ids: "".join(words[i] for i in ids))
    assert found[0] == shikra.Grounded("Answer: [0.100,0.250,0.500,0.750] at [0.5,0.5].", [[BOX]], [[[0.5, 0.5]]])
    assert found[1] == shikra.Grounded("[0.1, 0.2].", [], [])
    assert given["inputs"] == {"images": "pictures"}
    assert given["sampling"].temperature == 0


def test_published_sizes():
    for make, width in ((shikra.shikra_7b, 4096), (shikra.shikra_13b, 5120)):
        c = make()
        assert (c.tokens_per_image, c.image_token, c.vocab_size) == (256, 32_000, 32_003)
        assert (c.vision.width, c.language.width) == (1024, width)
    assert shikra.tiny().image_token + 3 == shikra.tiny().vocab_size
