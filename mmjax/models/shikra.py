"""Shikra: a language model that points, in plain words. Coordinates are numbers in its text, and nothing else is new.

Source: Chen et al. 2023, arXiv:2306.15195, sections 4 and 5; details from shikras/shikra.

    picture in a white square -CLIP, one layer-> [N W] -.
    "Where is the cat?" ----------------------embed-----x-language-> "Answer: [0.120,0.300,0.480,0.900] ."

The network is LLaVA's, smaller: 224 pixels, one linear layer (models/llava.py). What is Shikra's own are the tokens
<im_start> and <im_end> around a picture, how a place is written (text/coordinates.py), and the questions that a place
can be asked or answered in: the functions below, each from one row of a data set to a conversation. Sentences are ours;
the authors drew from 40 to 274 a task, written by GPT-4.

N tokens of a picture, W width, B batch, T tokens of a row, V vocabulary. Boxes are (x0, y0, x1, y1) and points (x, y)
in [0, 1] of the square (ops.images.in_square). In the functions, `boxes` and `points` are groups, one for each
<boxes> and <points> of the words that come with them, from the left, the question's before the answer's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import clip, llama, llava
from mmjax.nn.sampling import Sampling, generate
from mmjax.text import coordinates
from mmjax.text.coordinates import BOXES, PLAIN, POINTS, Bins, Form, Group, Plain

IMAGE = "<image>"  # where the picture stands in a question
PATCH, START, END = "<im_patch>", "<im_start>", "<im_end>"  # the ids that the vocabulary grows by, in this order
TRAINED = llava.INSTRUCT  # Task.trainable of both stages: projector and language model
Shikra = llava.Llava
GREEDY = Sampling(stop_ids=(2,))  # up to </s>
loss = llava.loss  # on what the assistant says; a place costs as many tokens as its digits, and no loss of its own


def shikra_7b() -> llava.LlavaConfig:  # section 4.1
    return _published(llama.llama_7b())


def shikra_13b() -> llava.LlavaConfig:
    return _published(llama.llama_13b())


def _published(language: llama.LlamaConfig) -> llava.LlavaConfig:
    language = dataclasses.replace(language, vocab_size=language.vocab_size + 3)
    return llava.LlavaConfig(clip.vit_l14().vision, language, language.vocab_size - 3, projector=llava.linear)


def tiny() -> llava.LlavaConfig:
    return dataclasses.replace(llava.LlavaConfig.tiny(), image_token=61, projector=llava.linear)


def grown(params: dict, rng: jax.Array, *, drawn: int = 1, averaged: int = 2) -> dict:
    """The parameters of a llama.Llama with more ids: `drawn` rows from N(0, 0.02), and then `averaged` rows, each the
    mean of all before them: a new token says nothing at first. For Shikra <im_patch>, and <im_start>, <im_end>.
    """
    head = {"head": {"kernel": params["head"]["kernel"].T}} if "head" in params else {}
    tables = {"embed": {"embedding": params["embed"]["embedding"]}, **head}  # [V W] each

    def more(table: jax.Array, key: jax.Array) -> jax.Array:
        table = jnp.concatenate([table, 0.02 * jax.random.normal(key, (drawn, table.shape[1]), table.dtype)])
        return jnp.concatenate([table, jnp.repeat(table.mean(0, keepdims=True), averaged, axis=0)])

    embed = more(tables["embed"]["embedding"], jax.random.fold_in(rng, 0))
    out = {**params, "embed": {"embedding": embed}}
    return out | ({"head": {"kernel": more(tables["head"]["kernel"], jax.random.fold_in(rng, 1)).T}} if head else {})


def with_pictures(text: str) -> str:
    """Each <image> as the tokens around and of a picture; after encoding, llava.expanded repeats the inner one."""
    return text.replace(IMAGE, START + PATCH + END)


# One row of a data set -> a conversation. `which` is the question's sentence, counted on from 0.

REFER = (
    "In the picture <image>, please find <expr>.",
    "<image> Which part of this shows <expr>? Give its box.",
    "Point out <expr> in <image> by the corners of a box.",
    "<expr>: what are its coordinates in <image>?",
)
DESCRIBE = (
    "<image> Say what only the thing in <objs> is, so that nobody takes another for it.",
    "Name the object at <objs> of <image> in words that fit no other.",
    "How would you tell someone which thing <objs> is, looking at <image>?",
)
REGION = (
    "<image> What does one see within <objs>?",
    "Describe the part <objs> of the picture <image>.",
    "Look at <objs> in <image> and write what is there.",
)
SPOT = (
    "<image> Describe this, and after each thing that you name write where it is.",
    "What happens in <image>? Add the box of every object.",
    "Tell me about <image> in one sentence with coordinates.",
)
CAPTION = ("<image> Describe this in a sentence.", "What does <image> show?", "Write a caption for <image>.")
ASK = (
    "<image> <question> Answer in a word or two.",
    "Look at <image> and answer: <question>",
    "<question> The picture is <image>. Be brief.",
)
REASON = (
    "<image> <question> First explain, then answer.",
    "<question> See <image>, and give your reasons before the answer.",
)
REASON_BOXES = (
    "<image> <question> Explain first, with the box of each thing that you speak of, then answer.",
    "<question> See <image>; think aloud, mark objects by boxes, and conclude.",
)
REASON_POINTS = (
    "<image> <question> Explain first, with a point on each thing that you speak of, then answer.",
    "<question> See <image>; think aloud, mark objects by points, and conclude.",
)

Messages = list[dict[str, str]]


def conversation(question: str, answer: str | None, *, boxes: Sequence[Group] = (), points: Sequence[Group] = (),
                 form: Form = PLAIN) -> Messages:  # fmt: skip
    """The user's turn and, where an answer is given, the assistant's; places filled in over both."""
    if answer is None:
        return [{"role": "user", "content": coordinates.fill(question, boxes, points, form=form)}]
    asked, spots = question.count(BOXES), question.count(POINTS)
    return [
        {"role": "user", "content": coordinates.fill(question, boxes[:asked], points[:spots], form=form)},
        {"role": "assistant", "content": coordinates.fill(answer, boxes[asked:], points[spots:], form=form)},
    ]


def refer(expression: str, box: Sequence[float] | None = None, *, which: int = 0, form: Form = PLAIN) -> Messages:
    """Referring expression comprehension (REC): a phrase -> its box."""
    question = _sentence(REFER, which).replace("<expr>", expression)
    if box is None:
        return conversation(question, None)
    return conversation(question, f"Answer: {BOXES} .", boxes=[[box]], form=form)


def describe(box: Sequence[float], caption: str | None = None, *, sentences: Sequence[str] = DESCRIBE, which: int = 0,
             form: Form = PLAIN) -> Messages:  # fmt: skip
    """A box -> words: referring expression generation (REG), or with REGION captions of regions (GC)."""
    question = _sentence(sentences, which).replace("<objs>", BOXES)
    return conversation(question, caption, boxes=[[box]], form=form)


def spot(caption: str | None = None, boxes: Sequence[Group] = (), *, which: int = 0, form: Form = PLAIN) -> Messages:
    """Spotting captions, as of Flickr30k Entities: a caption with <boxes> right after each phrase that has boxes."""
    return conversation(_sentence(SPOT, which), caption, boxes=boxes, form=form)


def describe_all(text: str | None = None, *, which: int = 0) -> Messages:
    return conversation(_sentence(CAPTION, which), text)


def ask(question: str, answer: str | None = None, *, boxes: Sequence[Group] = (), points: Sequence[Group] = (),
        which: int = 0, form: Form = PLAIN) -> Messages:  # fmt: skip
    """Visual question answering; of a place (PointQA) where the question ends in <boxes> or <points>."""
    asked = _sentence(ASK, which).replace("<question>", question)
    said = None if answer is None else f"The answer is {answer} ."
    return conversation(asked, said, boxes=boxes, points=points, form=form)


def choose(question: str, candidates: Sequence[Sequence[float]], answer: int | Sequence[float] | None = None, *,
           as_point: bool = False, which: int = 0, form: Form = PLAIN) -> Messages:  # fmt: skip
    """Which of several boxes (Visual7W): answered by the box of that number or, with as_point, by a point."""
    kind, groups = ("point" if as_point else "box"), [[box] for box in candidates]
    asked = f"{question} Candidates: {' '.join([BOXES] * len(groups))} answer in {kind} format."
    if answer is None:
        return ask(asked, boxes=groups, which=which, form=form)
    if as_point:
        return ask(asked, POINTS, boxes=groups, points=[[answer]], which=which, form=form)
    return ask(asked, BOXES, boxes=[*groups, groups[answer]], which=which, form=form)


def reason(question: str, reasons: str | None = None, answer: str | None = None, *, sentences: Sequence[str] = REASON,
           boxes: Sequence[Group] = (), points: Sequence[Group] = (), which: int = 0, form: Form = PLAIN,
) -> Messages:  # fmt: skip
    """Chain of thought: reasons, then the answer. Grounded (section 6.2) with REASON_BOXES or REASON_POINTS, and
    <boxes> or <points> in the reasons after what they speak of; in plain words with REASON."""
    asked = _sentence(sentences, which).replace("<question>", question)
    said = None if reasons is None else f"{reasons} The answer is {answer} ."
    return conversation(asked, said, boxes=boxes, points=points, form=form)


def _sentence(sentences: Sequence[str], which: int) -> str:
    return sentences[which % len(sentences)]


class Grounded(NamedTuple):
    """An answer, and the places that stand in it."""

    text: str
    boxes: list[list[list[float]]]  # groups of [0, 1] of the square; images.from_square leads back to pixels
    points: list[list[list[float]]]


def ground(
    model: llava.Llava, variables: dict, prompts: dict, decode: Callable[[Sequence[int]], str], *,
    max_new_tokens: int = 64, sampling: Sampling = GREEDY, rng: jax.Array | None = None,
    form: Plain | Bins = PLAIN,
) -> list[Grounded]:  # fmt: skip
    """prompts: input_ids [B T], which end where the assistant is to speak, attention_mask [B T], images as in a call.
    decode: ids -> text without special tokens."""
    said = generate(
        model, variables, prompts["input_ids"], prompts.get("attention_mask"), max_new_tokens=max_new_tokens,
        sampling=sampling, rng=rng, inputs={"images": prompts["images"]},
    )  # fmt: skip
    rows = zip(np.asarray(said.tokens), np.asarray(said.lengths), strict=True)
    texts = [decode(tokens[:length].tolist()) for tokens, length in rows]
    return [Grounded(text, form.read_boxes(text), form.read_points(text)) for text in texts]
