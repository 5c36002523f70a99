"""Makes objectives.npz: the losses of TRL 0.24 (and transformers 4.57) with their gradients, in float32.

Needs torch, trl==0.24.0 and transformers==4.57. The language model is as small as can be, logits = embed[ids] @ head,
so that what is compared is the objective: which position scores which token, masks, means and signs. TRL's own
functions are called; where its PPO has its formulas inside of a long method, that part of its source is executed.
"""

import inspect
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.dpo_trainer import DPOTrainer, FDivergenceType
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.ppo_trainer import INVALID_LOGPROB, PPOTrainer, masked_mean, masked_whiten
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.utils import selective_log_softmax

torch.manual_seed(0)
V, D, B, P, R = 11, 5, 4, 3, 5  # vocabulary, width, rows, length of prompt and answer
T = P + R
NAMES = ("embed", "head")
out = {}


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {"embed": scale * torch.randn(V, D), "head": torch.randn(D, V)}


class Toy(torch.nn.Module):
    """logits [B T V] of input_ids [B T]; called as TRL calls a model."""

    def __init__(self, start: dict[str, torch.Tensor]):
        super().__init__()
        for name, one in start.items():
            setattr(self, name, torch.nn.Parameter(one.clone()))

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0, **kwargs):
        logits = self.embed[input_ids] @ self.head
        return SimpleNamespace(logits=logits[:, -logits_to_keep:] if logits_to_keep else logits)


def keep(name: str, value: torch.Tensor, model: torch.nn.Module, wanted: tuple[str, ...] = NAMES) -> None:
    value.backward()
    out[f"{name}/value"] = value.detach().numpy()
    for one in wanted:
        out[f"{name}/{one}"] = getattr(model, one).grad.numpy()


policy, reference = weights(), weights()
out |= {f"policy/{name}": x.numpy() for name, x in policy.items()}
out |= {f"reference/{name}": x.numpy() for name, x in reference.items()}
input_ids = torch.randint(V, (B, T))
lengths = torch.tensor([R, 2, 4, 3])  # tokens of each answer
prompt_mask = torch.ones(B, P, dtype=torch.long)
prompt_mask[1, 0] = prompt_mask[2, :2] = 0  # padded on the left
answer_mask = (torch.arange(R) < lengths[:, None]).long()
attention_mask = torch.cat([prompt_mask, answer_mask], 1)
spoken = torch.cat([torch.zeros_like(prompt_mask), answer_mask], 1)
out |= {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy(), "spoken": spoken.numpy()}

# Pretraining and SFT: transformers' loss of a causal language model; TRL sets labels to -100 where not spoken
for name, mask in (("pretrain", attention_mask), ("sft", spoken)):
    model = Toy(policy)
    labels = torch.where(mask.bool(), input_ids, -100)
    if name == "pretrain":  # nothing predicts the first token after padding on the left
        first = (attention_mask.cumsum(1) == 1) & attention_mask.bool()
        labels = torch.where(first, -100, labels)
    keep(name, ForCausalLMLoss(model(input_ids).logits, labels, V), model)

# Reward model: TRL reads chosen rows, then rejected rows
score = torch.randn(D)
out["score"] = score.numpy()
last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
for name, margin, center in (("reward", None, None), ("reward_margin", torch.tensor([0.3, 1.2]), 0.05)):
    model = Toy({"embed": policy["embed"], "score": score})
    fake = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )

    def scored(input_ids, model=model, **kwargs):
        values = model.embed[input_ids] @ model.score
        return SimpleNamespace(logits=values[torch.arange(B), last][:, None])

    inputs = {"input_ids": input_ids, "attention_mask": attention_mask} | ({} if margin is None else {"margin": margin})
    keep(name, RewardTrainer.compute_loss(fake, scored, inputs), model, ("embed", "score"))
out["margin"] = np.array([0.3, 1.2], np.float32)


def answer_log_probs(start: dict[str, torch.Tensor] | Toy) -> torch.Tensor:  # [B R]
    model = start if isinstance(start, Toy) else Toy(start)
    return selective_log_softmax(model(input_ids).logits[:, P - 1 : -1], input_ids[:, P:])


# DPO: rows 0 and 1 are preferred to rows 2 and 3
for form, smoothing in (("sigmoid", 0.0), ("sigmoid", 0.1), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)):
    model = Toy(policy)
    sums = [(one * answer_mask).sum(1) for one in (answer_log_probs(model), answer_log_probs(reference).detach())]
    if form == "ipo":  # as TRL's concatenated_forward does
        sums = [one / answer_mask.sum(1) for one in sums]
    fake = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), reference_free=False, beta=0.1, label_smoothing=smoothing,
        f_divergence_type=FDivergenceType.REVERSE_KL,
    )  # fmt: skip
    losses, *_ = DPOTrainer.dpo_loss(fake, sums[0][:2], sums[0][2:], sums[1][:2], sums[1][2:], form)
    keep(f"dpo/{form}/{smoothing}", losses.mean(), model)

# GRPO: the policy has moved a little from the one that wrote
old = {name: x + 0.15 * torch.randn_like(x) for name, x in policy.items()}
out |= {f"old/{name}": x.numpy() for name, x in old.items()}
advantages = torch.tensor([1.2, -0.7, 0.4, -0.9])
out["advantages"] = advantages.numpy()
for kind in ("grpo", "dapo", "dr_grpo"):
    model = Toy(policy)
    fake = SimpleNamespace(
        model=SimpleNamespace(training=False), top_entropy_quantile=1.0, beta=0.04, importance_sampling_level="token",
        epsilon_low=0.2, epsilon_high=0.28, args=SimpleNamespace(delta=None, report_to=[]), use_vllm=False,
        loss_type=kind,
        current_gradient_accumulation_steps=1, max_completion_length=R, temperature=0.7, model_kwarg_keys=set(),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip

    def per_token(model, *args, fake=fake, **kwargs):
        return GRPOTrainer._get_per_token_logps_and_entropies(fake, model, *args, **kwargs)

    fake._get_per_token_logps_and_entropies = per_token
    with torch.no_grad():
        then, before = (per_token(Toy(x), input_ids, attention_mask, R)[0] for x in (old, reference))
    inputs = {
        "prompt_ids": input_ids[:, :P], "prompt_mask": prompt_mask, "completion_ids": input_ids[:, P:],
        "completion_mask": answer_mask, "advantages": advantages, "old_per_token_logps": then,
        "ref_per_token_logps": before, "num_items_in_batch": answer_mask.sum(),
    }  # fmt: skip
    keep(f"grpo/{kind}", GRPOTrainer._compute_loss(fake, model, inputs), model)

# PPO: two parts of PPOTrainer.train, once with answers of full length and once with padded ones
source = inspect.getsource(PPOTrainer.train)


def part(first: str, after: str) -> str:
    begin = source.rindex("\n", 0, source.index(first)) + 1
    return textwrap.dedent(source[begin : source.index(after, begin)])


EXPERIENCE = part("response_idxs = torch.arange", "empty_cache()\n\n            # Do multiple epochs")
LOSS = part("new_logprobs = torch.masked_fill(", "accelerator.backward(loss)")
for name, whiten, sequence_lengths in (("full", False, torch.full((B,), R - 1)), ("padded", True, lengths - 1)):
    scores, values = torch.randn(B), torch.randn(B, R)
    logprobs, ref_logprobs = answer_log_probs(old).detach(), answer_log_probs(reference).detach()
    room = {
        "torch": torch, "INVALID_LOGPROB": INVALID_LOGPROB, "masked_whiten": masked_whiten, "masked_mean": masked_mean,
        "responses": input_ids[:, P:], "sequence_lengths": sequence_lengths, "scores": scores, "values": values,
        "logprobs": logprobs, "ref_logprobs": ref_logprobs,
        "args": SimpleNamespace(
            kl_estimator="k1", kl_coef=0.05, whiten_rewards=whiten, gamma=0.97, lam=0.95, cliprange=0.2,
            cliprange_value=0.2, vf_coef=0.1, temperature=1.0,
        ),
    }  # fmt: skip
    exec(EXPERIENCE, room)
    out |= {f"ppo/{name}/{key}": room[key].numpy() for key in ("scores", "advantages", "returns")}
    out[f"ppo/{name}/old_values"] = values.numpy()
    model = Toy(policy | {"critic": policy["embed"], "score": score})
    every = slice(None)
    room |= {
        "micro_batch_inds": every, "mb_advantage": room["advantages"], "mb_responses": input_ids[:, P:],
        "mb_logprobs": room["logprobs"], "mb_return": room["returns"], "mb_values": room["values"],
        "new_logprobs": answer_log_probs(model),
        "vpred_temp": (model.critic[input_ids] @ model.score)[..., None],
        "context_length": P,
    }  # fmt: skip
    exec(LOSS, room)
    keep(f"ppo/{name}", room["loss"], model, (*NAMES, "critic", "score"))
    out[f"ppo/{name}/policy_loss"], out[f"ppo/{name}/value_loss"] = (
        room[k].detach().numpy() for k in ("pg_loss", "vf_loss")
    )

np.savez(Path(__file__).parent / "objectives.npz", **out)
print(len(out), "arrays")
