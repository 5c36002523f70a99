"""Ferret as its authors keep it: LLaMA's names, `model.mm_projector` and the sampler; CLIP's tower, which stayed
OpenAI's, apart. What they publish is the difference to Vicuna 1.3 (`applied`). Files hold no more than tensors: the
model must be said, such as ferret.Ferret(ferret.ferret_7b()).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.models import ferret, llama
from mmjax.weights import engine, shikra
from mmjax.weights import llama as llama_weights
from mmjax.weights.engine import Rule, Transform, linear, norm

FORMAT = "apple/ml-ferret's FERRETLlamaForCausalLM"
SAMPLER, ADAPTER = "model.region_geo_sampler", "model.region_fea_adapter"
TOWER = r"^model\.vision_tower\."
CONV1D = Transform(lambda x: rearrange(x, "o i 1 -> i o"), lambda x: rearrange(x, "i o -> o i 1"))


def rules(config: ferret.FerretConfig) -> list[Rule]:
    """Of the paths language/, projector/ and regions/."""
    return [*shikra.rules(config.llava), *regions(config)]


def regions(config: ferret.FerretConfig) -> list[Rule]:
    if config.regions is ferret.plain:
        return linear("regions/out", ADAPTER)
    if config.regions is not ferret.sampler:
        raise ValueError(
            f"{FORMAT} has the sampler or the mean (regions=ferret.sampler, ferret.plain), got {config.regions}"
        )
    found = []
    for i in range(len(config.sampler.anchors)):
        ours, aggregate = f"regions/block{i}", f"{SAMPLER}.agg_projector_list.{i}"
        found += linear(f"{ours}/difference", f"{SAMPLER}.diff_projector_list.{i}")
        found.append(Rule(f"{ours}/aggregate/kernel", f"{aggregate}.net.0.weight", CONV1D))
        found.append(Rule(f"{ours}/aggregate/bias", f"{aggregate}.net.0.bias"))
        found += norm(f"{ours}/norm", f"{aggregate}.norm")
    flatten, out = f"{SAMPLER}.flatten_projector", f"{SAMPLER}.dim_projector"
    return [*found, *linear("regions/flatten", flatten), *linear("regions/out", out)]


def load(model: ferret.Ferret, tensors: Mapping[str, np.ndarray], vision: Mapping, *, source: str = "tensors") -> dict:
    """The variables of `model` from merged tensors. vision: parameters of the tower, `vision` of a loaded CLIP's."""
    target = {part: tree for part, tree in abstract(model)["params"].items() if part != "vision"}
    ignored = (TOWER, *llama_weights.IGNORED(llama.Llama(model.config.llava.language)))
    found = engine.load(rules(model.config), tensors, target, format=FORMAT, source=source, ignored=ignored)
    return {"params": {**found, "vision": vision}}


def save(model: ferret.Ferret, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name, without the tower's."""
    params = {part: tree for part, tree in variables["params"].items() if part != "vision"}
    return engine.save(rules(model.config), params, format=FORMAT)


def applied(base: Mapping[str, np.ndarray], delta: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Vicuna and the published difference -> Ferret's tensors, see shikra.applied; the sampler is no difference."""
    own = {name: x for name, x in delta.items() if name.startswith((SAMPLER, ADAPTER, "model.vision_tower."))}
    return shikra.applied(base, {name: x for name, x in delta.items() if name not in own}) | own


def abstract(model: ferret.Ferret) -> dict:
    """The variables' shapes."""
    side, count = model.config.llava.vision.image_size, model.config.sampler.points
    return jax.eval_shape(
        model.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 1), jnp.int32),
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, count, 2), jnp.float32),
    )
