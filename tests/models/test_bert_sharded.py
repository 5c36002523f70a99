"""A step of BERT's pretraining is the same on one device and on a mesh; published sizes have a rule for every array."""

import jax
import numpy as np
import pytest

from mmjax.models import bert
from mmjax.parallel import rules
from mmjax.parallel.mesh import MeshShape
from mmjax.train import overrides, step, trees
from mmjax.weights import bert as names

FILE = "experiments/bert_cldr.py"


def gradients(mesh):
    """Loss and gradients of the tiny BERT on the first batch, words hidden by one key, as the trainer lays them out."""
    task = (experiment := overrides.load_experiment(FILE, "tiny")).task
    runner = step.build(experiment, mesh)
    batch = runner.place(experiment.data.batches(16, 0)[0])
    state = runner.init(batch)

    @jax.jit
    def run(variables, batch):
        return jax.value_and_grad(lambda v: task.loss(task.model, v, batch, jax.random.key(0), 0)[0])(variables)

    with jax.set_mesh(mesh):
        return jax.device_get(run(state.variables, batch)), jax.device_get(batch), state


@pytest.fixture(scope="module")
def alone():
    return gradients(MeshShape(data=1).build(jax.devices()[:1]))


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_on_a_mesh(alone):
    (loss, wanted), _, _ = alone
    (found_loss, found), _, state = gradients(MeshShape(data=2, fsdp=2, tensor=2).build())
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.variables))
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    wanted, found = trees.leaves(wanted), trees.leaves(found)
    for path, expected in wanted.items():
        # 5e-7: gradients of key biases are rounding around 0, since softmax does not see them.
        np.testing.assert_allclose(found[path], expected, atol=1e-5 * np.abs(expected).max() + 5e-7, err_msg=path)


@pytest.mark.slow
def test_the_loss_of_local_batches_is_another(alone):
    """The mean is over the hidden words of the global batch; rows hide different numbers of them."""
    _, batch, state = alone
    task = overrides.load_experiment(FILE, "tiny").task
    masking = task.loss.keywords["masking"]
    hidden = bert.mask_tokens(jax.random.key(1), batch["input_ids"], batch["attention_mask"], masking)
    batch = jax.device_get({**batch, **hidden})  # the same words for all, as no other key draws again
    variables = jax.tree.map(lambda x: 8 * x, jax.device_get(state.variables))  # far from all words alike

    @jax.jit
    def parts_of(variables, batch):
        total, aux = bert.pretraining_loss(task.model, variables, batch, jax.random.key(2), 0)
        return {"total": total, "mlm": aux.metrics["mlm"], "count": (batch["labels"] >= 0).sum()}

    whole = parts_of(variables, batch)
    local = [parts_of(variables, {name: x[i : i + 2] for name, x in batch.items()}) for i in range(0, 16, 2)]
    total, mlm, count = (np.array([one[name] for one in local]) for name in ("total", "mlm", "count"))
    assert len(set(count.tolist())) > 2
    assert abs(total.mean() - whole["total"]) > 0.01
    np.testing.assert_allclose((mlm * count).sum() / count.sum(), whole["mlm"], rtol=1e-5)  # it is these words' mean


@pytest.mark.parametrize("make", [bert.base, bert.large])
def test_every_large_array_of_the_published_sizes_is_split(make):
    shapes = names.abstract(bert.BERTForPreTraining(make()))
    where = trees.leaves(rules.shardings(MeshShape(fsdp=8).build(), rules.DEFAULT, shapes))
    for path, leaf in trees.leaves(shapes).items():
        assert leaf.size <= rules.LARGE or not where[path].is_fully_replicated, path
