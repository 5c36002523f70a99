"""VAR's tokenizer on emoji: 32 x 32 pixels become 130 codes of six grids; each adds what the coarser ones left.

tiny    seconds: does everything once, learns nothing
small   about 6 minutes on one CPU core after kl_emoji, not recorded yet: from that autoencoder, and codes that begin as
        k-means of what its latents leave at each scale
paper   VAR's, at 256 pixels: for `mmjax plan` and pods. Its authors never released how they trained it; without LPIPS
        and the discriminator of their text

The numbers are of an artist that was never trained on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.data.emoji_pictures import EmojiPictures
from mmjax.evals.rebuild import Rebuild
from mmjax.evals.reconstruction import Rebuilt
from mmjax.models import var_tokenizer
from mmjax.models.var_tokenizer import Tokenizer
from mmjax.ops import images as image_ops
from mmjax.ops import quantize
from mmjax.train import optim
from mmjax.train.experiment import Experiment, Source
from mmjax.train.task import Batch, Task, Variables, init_model


def started(model: Tokenizer, rng: jax.Array, batch: Batch, loaded: Variables) -> Variables:
    """The autoencoder of `kl`, all parameters of kl_emoji, where it was loaded."""
    loaded = dict(loaded)
    kl = loaded.pop("kl", None)
    variables = init_model(model, rng, batch, loaded)
    if kl is None:
        return variables
    means = jax.tree.map(lambda x: x[..., : model.config.dim], kl["to_moments"])
    encoder = {"codec": kl["encoder"], "to_code": means}
    decoder = {"codec": kl["decoder"], "from_code": kl["from_latent"], "to_image": kl["to_image"]}
    identity = {"kernel": jnp.zeros((3, 3, model.config.dim, model.config.dim)).at[1, 1].set(jnp.eye(model.config.dim))}
    phi = {f"phi_{k}": {**variables["params"][f"phi_{k}"], **identity} for k in range(model.config.phis)}
    params = jax.tree.map(jnp.array, {**variables["params"], **phi, "encoder": encoder, "decoder": decoder})
    variables = {**variables, "params": params}
    codes = quantize.kmeans(left_over(model, variables), model.config.num_codes, rng)
    return {**variables, "codebook": {"quantizer": {"state": quantize.begin(codes)}}}


def left_over(model: Tokenizer, variables: Variables, count: int = 512) -> jax.Array:
    """Of `count` training pictures, spread evenly: what each scale has to say, if those before were exact. [N D]"""
    c, (images, _) = model.config, EmojiPictures().drawings("train")
    images = images[np.linspace(0, len(images) - 1, count).astype(int)]
    encode = jax.jit(lambda images: model.apply(variables, images, method="latents"))
    z = jnp.concatenate([encode(part) for part in np.split(images, 4)])
    rest, found = z, []
    for p in c.scales:
        seen = var_tokenizer.resized(rest, image_ops.area_rows(c.side, p)) if p < c.side else rest
        rest = rest - (var_tokenizer.resized(seen, image_ops.cubic_rows(p, c.side)) if p < c.side else seen)
        found.append(rearrange(seen, "b p q d -> (b p q) d"))
    return jnp.concatenate(found)


def rebuild(model: Tokenizer, variables: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = model.apply(variables, images)
    return image_ops.to_uint8(out.images, 0.5, 0.5), out.quantized.ids


def small(size: str) -> Experiment:
    tiny = size == "tiny"
    steps, batch, count = {"tiny": (8, 8, 16), "small": (1_200, 32, 1_500)}[size]
    made = var_tokenizer.small(tiny)
    every = {"save_every": 4, "eval_every": 8, "log_every": 1} if tiny else {"eval_every": 600}
    final = tuple(Rebuilt(rebuild, split, made.num_codes, count) for split in ("twemoji", "concepts"))
    return Experiment(
        Task(Tokenizer(made), var_tokenizer.loss, init=started), EmojiPictures(),
        optim.AdamW(2e-3, warmup=50, end=0.01, weight_decay=1e-4, clip=1.0), steps, batch,
        evals=(Rebuilt(rebuild, "validation", made.num_codes, count),), final_evals=final, sample=Rebuild(rebuild),
        init_from=(Source("kl_emoji-tiny" if tiny else "kl_emoji-small", "params", "kl"),), **every,
    )  # fmt: skip


def paper() -> Experiment:
    adamw = optim.AdamW(1e-4, b1=0.5, b2=0.95, weight_decay=0.05)
    return Experiment(
        Task(Tokenizer(var_tokenizer.published()), var_tokenizer.loss), EmojiPictures(image_size=256), adamw, 100_000,
        768, sample=Rebuild(rebuild),
    )  # fmt: skip


def experiment(size: str) -> Experiment:
    return paper() if size == "paper" else small(size)
