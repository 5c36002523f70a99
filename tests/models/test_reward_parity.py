"""The reward model next to transformers' LlamaForSequenceClassification, live: scores, loss of pairs, gradients."""

import jax
import jax.numpy as jnp
import lm_names
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax import weights
from mmjax.models.reward import RewardModel
from mmjax.objectives.reward import Reward

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity
PAD = 52


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_loss_and_gradients_equal_transformers(tmp_path, side):
    import lm_parity

    config = transformers.LlamaConfig(
        vocab_size=53, max_position_embeddings=64, hidden_size=48, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, intermediate_size=45, attn_implementation="eager", pad_token_id=PAD, num_labels=1,
    )  # fmt: skip
    base = lm_parity.randomise(transformers.LlamaForCausalLM(config), 0)
    base.save_pretrained(tmp_path)
    theirs = lm_parity.randomise(transformers.LlamaForSequenceClassification(config), 1)
    theirs.model.load_state_dict(base.model.state_dict())
    language_model, variables = weights.load_hf(tmp_path)
    kernel = jnp.asarray(theirs.score.weight.detach().numpy().T)
    params = {"language_model": variables["params"], "score": {"kernel": kernel}}
    ours = RewardModel(language_model)

    rng, sizes = np.random.default_rng(2), (9, 4, 12, 7, 12, 10)  # three pairs, side by side
    ids, mask = np.full((6, 12), PAD), np.zeros((6, 12), bool)
    for row, size in enumerate(sizes):
        place = slice(12 - size, 12) if side == "left" else slice(0, size)
        ids[row, place], mask[row, place] = rng.integers(0, PAD, size), True
    positions = torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0))  # theirs count padding unless told
    scores = theirs(torch.tensor(ids), torch.tensor(mask), position_ids=positions).logits[:, 0]
    loss = -torch.nn.functional.logsigmoid(scores[0::2] - scores[1::2]).mean()
    loss.backward()

    batch = {"input_ids": ids[0::2], "attention_mask": mask[0::2]}
    batch |= {"rejected_input_ids": ids[1::2], "rejected_attention_mask": mask[1::2]}

    def ours_of(params: dict) -> jax.Array:
        return Reward()(ours, {"params": params}, batch, None, None)[0]

    found = ours.apply({"params": params}, ids, mask).scores
    close("forward scores", found, scores.detach().numpy(), relative=1e-5)
    value, gradients = jax.value_and_grad(ours_of)(params)
    close("loss", value, loss.item(), relative=1e-5)
    close("gradient score", gradients["score"]["kernel"], theirs.score.weight.grad.numpy().T, relative=1e-4)
    written = {f"model.{name}": weight.grad.numpy() for name, weight in theirs.model.named_parameters()}
    written["lm_head.weight"] = np.zeros((53, 48), np.float32)  # a score reads no logits
    close_trees(gradients["language_model"], lm_names.llama(written), relative=1e-4)
