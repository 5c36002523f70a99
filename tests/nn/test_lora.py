"""LoRA: changes nothing at first, trains nothing else, and merges into the plain model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import llama
from mmjax.nn import lora
from mmjax.nn.sampling import generate
from mmjax.objectives import pretrain
from mmjax.train import accumulate, trees
from mmjax.train.task import Task, init_model

IDS = np.random.default_rng(0).integers(0, 64, (2, 8)).astype(np.int32)


@pytest.fixture(scope="module")
def adapted():
    return lora.LoRA(llama.Llama(llama.LlamaConfig.tiny()), r"(query|value|up)/kernel$", rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def started(adapted):
    """As a trainer makes it, and the same with products that do something."""
    fresh = adapted.started(init_model)(adapted, jax.random.key(0), {"input_ids": IDS}, {})
    params = trees.map_paths(lambda path, x: x + 0.3 if path.endswith(lora.B) else x, fresh["params"])
    return fresh, {"params": params}


def test_at_first_it_is_the_model(adapted, started):
    plain = adapted.model.init(jax.random.key(0), IDS)
    np.testing.assert_array_equal(adapted.apply(started[0], IDS).logits, adapted.model.apply(plain, IDS).logits)


def test_the_first_factor_starts_uniform_and_each_in_its_own_way():
    wide = lora.LoRA(llama.Llama(llama.LlamaConfig.tiny()), rank=64)
    params = {name: {"attention": {"query": {"kernel": jnp.zeros((400, 8))}}} for name in "ab"}
    starts = [np.asarray(one["attention"]["query"][lora.A]) for one in wide.add(params, jax.random.key(0)).values()]
    for start in starts:  # uniform in +- 1 / sqrt(fan in)
        assert np.abs(start).max() <= 0.05
        np.testing.assert_allclose(start.std(), 0.05 / 3**0.5, rtol=0.02)
    assert np.abs(np.corrcoef(starts[0].ravel(), starts[1].ravel())[0, 1]) < 0.05


def test_merging_adds_the_product_of_each_layer(adapted, started):
    _, trained = started
    before, after = trained["params"], adapted.merge(trained["params"])
    for path, array in trees.leaves(after).items():
        assert not path.endswith((lora.A, lora.B))
        old = trees.subtree(before, path)
        if path.endswith(("query/kernel", "value/kernel", "up/kernel")):
            beside = trees.subtree(before, path.rsplit("/", 1)[0])
            for layer in range(2):  # stacked kernels are as many products
                product = 2.0 * np.float64(beside[lora.A][layer]) @ np.float64(beside[lora.B][layer])
                np.testing.assert_allclose(array[layer], old[layer] + product, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(array, old)
    apply = jax.jit(lambda variables: adapted.apply(variables, IDS).logits)
    merged = jax.jit(lambda variables: adapted.model.apply(variables, IDS).logits)
    np.testing.assert_allclose(apply(trained), merged({"params": after}), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_only_products_are_trained_and_all_of_them(adapted, started):
    task = Task(adapted, pretrain.loss, trainable=lora.TRAINABLE)
    trained = trees.select(started[1]["params"], task.trainable)
    assert len(trees.leaves(trained)) == 6
    batch = {"input_ids": jnp.asarray(IDS)}
    _, _, gradients = accumulate.whole(task, trained, started[1], batch, jax.random.key(0), jnp.int32(0))
    assert trees.leaves(gradients).keys() == trees.leaves(trained).keys()
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients))


def test_what_is_no_matrix_is_refused_however_it_is_stacked(adapted, started):
    params = adapted.merge(started[0]["params"])  # layers/norm1/scale is [L D]
    with pytest.raises(ValueError, match=r"match layers/norm1/scale \[2, 16\], which is none of kernel, embedding"):
        lora.LoRA(adapted.model, "norm1").add(params, jax.random.key(0))


def test_a_path_may_match_all_below_it(adapted, started):
    whole = lora.LoRA(adapted.model, "attention/query", rank=2)
    params = whole.add(adapted.merge(started[0]["params"]), jax.random.key(0))
    assert set(params["layers"]["attention"]["query"]) == {"kernel", lora.A, lora.B}
    merged = whole.merge(params)
    assert set(merged["layers"]["attention"]["query"]) == {"kernel"}


def test_it_decodes_as_the_merged_model_does(adapted, started):
    said = generate(adapted, started[1], IDS, max_new_tokens=4)
    merged = {"params": adapted.merge(started[1]["params"])}
    np.testing.assert_array_equal(said.tokens, generate(adapted.model, merged, IDS, max_new_tokens=4).tokens)


def test_paths_that_cannot_be_adapted_are_errors(adapted, started):
    model, params = adapted.model, started[0]["params"]
    with pytest.raises(ValueError, match="match no parameter"):
        lora.LoRA(model, "nothing").add(adapted.merge(params), jax.random.key(0))
    with pytest.raises(ValueError, match=r"match norm/scale \[16\], which is none of kernel"):
        lora.LoRA(model, "^norm/scale").add(adapted.merge(params), jax.random.key(0))
    with pytest.raises(ValueError, match="already has an update"):
        adapted.add(params, jax.random.key(0))
