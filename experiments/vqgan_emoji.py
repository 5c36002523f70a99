"""VQGAN on emoji: 32 x 32 pixels become 8 x 8 codes.

tiny      seconds: does everything once, learns nothing
small     about 5 minutes on one CPU core after kl_emoji, not recorded yet: from that autoencoder, and codes that begin
          as k-means of its latents; pixels differ by squares, and nobody judges them, so PSNR is what is learned
small_gan the same, judged by a discriminator
paper     ImageNet at 256 pixels with 1,024 codes: for `mmjax plan` and pods. Without the distance of VGG's features,
          which are not here: VQGANConfig.features takes them

The numbers are of an artist that was never trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.emoji_pictures import EmojiPictures
from mmjax.evals.rebuild import Rebuild
from mmjax.evals.reconstruction import Rebuilt
from mmjax.models import vqgan
from mmjax.nn.quantizers import MovingCodebook
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.ops import quantize
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model

DIM = 8  # of kl_emoji's latents, and of codes


def rebuild(model: vqgan.VQGAN, variables: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = model.apply(variables, images)
    return image_ops.to_uint8(out.images, 0.5, 0.5), out.quantized.ids


def started(model: vqgan.VQGAN, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """The autoencoder of `kl`, all parameters of kl_emoji, where it was loaded: its means are what codes stand for."""
    loaded = dict(loaded)
    kl = loaded.pop("kl", None)
    variables = init_model(model, rng, batch, loaded)
    if kl is None:
        return variables
    params = {**variables["params"], **{name: kl[name] for name in ("encoder", "to_image")}}
    params["to_code"] = jax.tree.map(lambda x: x[..., :DIM], kl["to_moments"])
    # The decoder reads twice as many channels, of which the further ones say nothing at first.
    params["from_code"] = {
        name: jnp.concatenate([kl["from_latent"][name], own[..., DIM:]], axis=-1)
        for name, own in variables["params"]["from_code"].items()
    }
    inner = kl["decoder"]["conv_in"]
    wide = jnp.concatenate([inner["kernel"], jnp.zeros_like(inner["kernel"])], axis=2)
    params["decoder"] = {**kl["decoder"], "conv_in": {**inner, "kernel": wide}}
    variables = {**variables, "params": jax.tree.map(jnp.array, params)}
    codes = quantize.kmeans(latents_of(model, variables), model.config.quantizer.num_codes, rng)
    return {**variables, "codebook": {"quantizer": {"state": quantize.begin(codes)}}}


def latents_of(model: vqgan.VQGAN, variables: Variables, count: int = 1_024) -> jax.Array:
    """Of `count` training pictures, spread evenly: [N D]."""
    images, _ = EmojiPictures().drawings("train")
    images = images[np.linspace(0, len(images) - 1, count).astype(int)]
    encode = jax.jit(lambda images: model.apply(variables, images, method="latents"))
    return jnp.concatenate([encode(part).reshape(-1, DIM) for part in np.split(images, 8)])


def small(size: str) -> Experiment:
    tiny = size == "tiny"
    steps, batch, count = (8, 8, 16) if tiny else (1_200, 32, 1_500)
    codec = dataclasses.replace(vqgan.small_codec(2 * DIM), **({"width": 8} if tiny else {}))
    judged = vqgan.Adversary(width=32, layers=2, weight=0.1, start=steps // 4) if size == "small_gan" else None
    codes = MovingCodebook(64 if tiny else 1_024, DIM, threshold=0.03)
    model = vqgan.VQGAN(vqgan.VQGANConfig(codec, codes, judged, square=True))
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 600}
    final = tuple(Rebuilt(rebuild, split, codes.num_codes, count) for split in ("twemoji", "concepts"))
    return Experiment(
        Task(model, vqgan.loss, init=started), EmojiPictures(),
        optim.AdamW(2e-3, warmup=50, end=0.01, weight_decay=1e-4, clip=1.0), steps, batch,
        evals=(Rebuilt(rebuild, "validation", codes.num_codes, count),), final_evals=final, sample=Rebuild(rebuild),
        init_from=(Source("kl_emoji-tiny" if tiny else "kl_emoji-small", "params", "kl"),), **every,
    )  # fmt: skip


def paper() -> Experiment:
    made = vqgan.vqgan_f16()
    codec = dataclasses.replace(made.codec, compute=Compute(jnp.bfloat16, "full"))
    adam = optim.AdamW(4.5e-6 * 96, b1=0.5, b2=0.9)  # taming's base rate, times the batch
    model = vqgan.VQGAN(dataclasses.replace(made, codec=codec))
    return Experiment(
        Task(model, vqgan.loss), EmojiPictures(image_size=256), adam, 300_000, 96, sample=Rebuild(rebuild)
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    if size not in ("tiny", "small", "small_gan", "paper"):
        raise KeyError(size)
    return paper() if size == "paper" else small(size)
