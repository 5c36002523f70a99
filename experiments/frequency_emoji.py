"""Frequencies of emoji as tokens: from the mean of a picture to its finest detail, and the other way.

tiny    seconds: does everything once, learns nothing

Each about 7 minutes on one CPU core, not recorded yet; no tokenizer has to be trained:
small                 Fourier coefficients of the whole picture in 8 bands from low to high, as codes: true bits a pixel
small_reversed        the same from high to low
small_shuffled        the bands in an order by chance
small_values          values by a diffusion head instead of codes, low to high
small_values_reversed
small_cosines         cosines of 8 x 8 blocks in 8 bands, all blocks at a time
small_raster          the same tokens block after block, as JPEG has them

names   as small, told the name and the artist, for pairs that were never seen; about 60 minutes

Nothing is published, so there is no size paper. Numbers compare what is drawn with drawings of the same labels; Frechet
distances of few pictures see whether colours and outlines are those of a class, and little of whether a picture is
good: look at the sheets.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from mmjax.data.emoji_pictures import NAME, SUBJECT, EmojiPictures
from mmjax.evals.drawn import Ask, HeldOut
from mmjax.evals.never_drawn import final_evals
from mmjax.evals.progress import Progress
from mmjax.models import frequency, frequency_tokenizer
from mmjax.models.frequency_tokenizer import TokenizerConfig
from mmjax.nn.embeddings import Labels
from mmjax.nn.sampling import Sampling
from mmjax.ops import images as image_ops
from mmjax.train import optim
from mmjax.train.experiment import Experiment
from mmjax.train.task import Batch, Task, Variables, init_model

BANDED = TokenizerConfig()
TOKENIZERS = {
    "small": BANDED, "names": BANDED, "small_values": BANDED, "tiny": dataclasses.replace(BANDED, group=32),
    "small_reversed": dataclasses.replace(BANDED, order=frequency_tokenizer.high_to_low),
    "small_values_reversed": dataclasses.replace(BANDED, order=frequency_tokenizer.high_to_low),
    "small_shuffled": dataclasses.replace(BANDED, order=frequency_tokenizer.shuffled),
    "small_cosines": frequency_tokenizer.cosine_blocks(), "small_raster": frequency_tokenizer.raster_blocks(),
}  # fmt: skip


def started(model: frequency.Frequency, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """With the mean and the deviation of each coefficient in the training pictures."""
    fresh = init_model(model, rng, {name: batch[name] for name in ("images", "label")}, loaded)
    images, _ = EmojiPictures().drawings("train")
    with jax.ensure_compile_time_eval():  # variables begin in a traced function, and these are numbers
        statistics = frequency_tokenizer.fit(model.config.tokenizer, images)
    return {**fresh, "statistics": jax.tree.map(jnp.asarray, statistics)}


@dataclasses.dataclass(frozen=True)
class Draw:
    guidance: float = 2.0
    sampling: Sampling = Sampling(temperature=1.0)

    def __call__(self, model: frequency.Frequency, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        tokens = frequency.sample(model, variables, rng, label, guidance=self.guidance, sampling=self.sampling)
        return image_ops.to_uint8(model.apply(variables, tokens, method="pictures"), 0.5, 0.5)

    def progress(self, model: frequency.Frequency, variables: dict, rng: jax.Array, label: jax.Array) -> jax.Array:
        """[S B H W 3]: the picture after each band."""
        tokens = frequency.sample(model, variables, rng, label, guidance=self.guidance, sampling=self.sampling)
        return image_ops.to_uint8(frequency.progressive(model, variables, tokens), 0.5, 0.5)


def experiment(size: str) -> Experiment:
    tokenizer, tiny, named = TOKENIZERS[size], size == "tiny", size == "names"
    data = EmojiPictures(NAME if named else SUBJECT)
    width, depth = (16, 2) if tiny else (160, 5) if named else (128, 4)
    values = partial(frequency.Denoised, head_width=width * 5 // 8, noise_steps=25)
    # So wide that all have about as many parameters as the codes of autoregressive_emoji.
    hidden = width * 17 // 4 if size in ("small_cosines", "small_raster") else width * 3 // 2
    head = values if "values" in size else frequency.Scalars
    config = frequency.FrequencyConfig(
        tokenizer, head, width, depth, width // 32 or 1, hidden, partial(Labels, data.counts), modulated=True
    )  # fmt: skip
    # So many that all cost as many operations to train as autoregressive_emoji does.
    steps = 890 if "values" in size else 905 if size in ("small_cosines", "small_raster") else 1_280
    draw, few = Draw(), {"count": 16, "batch": 8} if tiny else {}
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 500}
    task = Task(
        frequency.Frequency(config), frequency.loss, init=optim.with_copy("ema", init=started),
        after_update=optim.ema("params", "ema", 0.9 if tiny else 0.995), serve="ema",
    )  # fmt: skip
    return Experiment(
        task, data, optim.AdamW(2e-3, warmup=100, end=0.01, weight_decay=0.03, clip=1.0),
        8 if tiny else 5 * steps if named else steps, 8 if tiny else 32,
        evals=(HeldOut(frequency.loss, "validation", **few),),
        final_evals=(*final_evals(draw, named, **few), Progress(draw.progress)), sample=Ask(draw), **every,
    )  # fmt: skip
