"""Frequencies as tokens next to a plain account by scipy.fft and torch in float64, live, of pictures and weights that
are not the stored ones."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close, close_trees, group
from flax import linen as nn
from flax.traverse_util import unflatten_dict

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1] / "goldens"))
import make_frequency  # noqa: E402
from test_frequency import CONFIGS  # noqa: E402

from mmjax.models import frequency, frequency_tokenizer  # noqa: E402


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_losses_and_gradients(name):
    golden, model = group(make_frequency.account(name, seed=11), name), frequency.Frequency(CONFIGS[name])
    tokenizer = model.config.tokenizer
    statistics = frequency_tokenizer.fit(tokenizer, golden["images"])
    params, wanted = (
        unflatten_dict({tuple(key.split("/")): x for key, x in group(golden, kind).items()})
        for kind in ("weights", "gradients")
    )

    def run(self):
        tokens = self.tokens(golden["images"])
        z = self.states(tokens, golden["labels"])
        if name == "fft":
            return tokens, z, self.head.losses(z, tokens, None)
        return tokens, z, self.head.losses_at(z, tokens, golden["t"], golden["noise"])

    def loss(params):
        tokens, z, losses = nn.apply(run, model)({"params": params, "statistics": statistics})
        return jnp.mean(jnp.where(tokenizer.live, losses, 0).sum(-1) / tokenizer.live.sum(-1)), (tokens, z)

    (value, (tokens, z)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close("tokens", tokens, golden["tokens"], relative=1e-5)
    close("z", z, golden["z"], relative=1e-5)
    close("loss", value, golden["loss"], relative=1e-5)
    close_trees(gradients, wanted, relative=1e-4)
    if name == "fft":
        pictures = model.apply({"params": params, "statistics": statistics}, np.asarray(tokens), method="pictures")
        close("pictures", pictures, golden["rounded"], relative=1e-5)
