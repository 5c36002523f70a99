"""Makes seed.npz with AILab-CVC/SEED's own code (commit 93b3cf4): both stages of the tokenizer with random weights,
what they find, their losses and gradients, and what the released class makes of ids; and a causal Q-Former of
transformers' with fewer queries, since theirs is causal with 32 only. Needs torch, transformers 5, einops, and the path
of a checkout as the argument; what is replaced in it is said in tests/models/seed_original.py.

    python tests/goldens/make_seed.py CHECKOUT

B 3 rows, Q 32 queries, T 6 tokens. Weights are float16, which the float32 of the runs equal. GROUP/NAME of weights and
gradients stand as two arrays, GROUP, their numbers one after the other, and GROUP/layout, JSON of {NAME: shape}.

    inputs/{images,input_ids,attention_mask,target_image,target_text}   images [B 3 H W]
    stage1/weights/NAME, stage1/{image_embeds,text_embeds,loss}, stage1/gradients/NAME
    stage2/weights/NAME                  those that are new; with a Reverse Q-Former, and a text branch
    stage2/{queries,z,quantized,ids,reconstruction,image,text}
    stage2/{codes,image_error,text_error,reconstruction_error,loss}    the weights of the losses are in each
    stage2/features, stage2/gradients/NAME
    down/weights/NAME                    those that differ, without a Reverse Q-Former and a text branch
    down/{image,loss}, down/gradients/NAME    of what the image's branch holds, and of what encodes
    down/released/{ids,features}         of the released class, with these weights
    former/weights/NAME, former/{queries,states,output}    transformers' Q-Former of 5 queries, 3 blocks
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import seed_original as original

CHECKOUT = Path(sys.argv[1])
SIZES = original.Sizes()
ROWS = 3


def inputs() -> dict[str, np.ndarray]:
    rng, s = np.random.default_rng(0), SIZES
    lengths = np.array([6, 3, 5])
    mask = (np.arange(s.length) < lengths[:, None]).astype(np.int64)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "images": draw(ROWS, 3, s.side, s.side),
        "input_ids": rng.integers(1, s.vocab, (ROWS, s.length)) * mask,
        "attention_mask": mask,
        "target_image": draw(ROWS, s.image_dim),
        "target_text": draw(ROWS, s.text_queries, s.text_dim),
    }


def watch(module: nn.Module, into: dict, name: str, take=lambda x: x) -> None:
    """Keeps what the module says first."""

    def keep(_, __, output) -> None:
        into.setdefault(name, take(output).detach().numpy())

    module.register_forward_hook(keep)


def packed(group: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layout = json.dumps({name: x.shape for name, x in arrays.items()})
    return {group: np.concatenate([x.ravel() for x in arrays.values()]), f"{group}/layout": np.array(layout)}


def halves(model: nn.Module, known: dict) -> dict[str, np.ndarray]:
    new = {name: x for name, x in original.parameters(model).items() if name not in known}
    return packed("weights", {name: x.astype(np.float16) for name, x in new.items()})


def trained(model: nn.Module, kept=lambda name: True) -> dict[str, np.ndarray]:
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None and kept(name)}
    return packed("gradients", found)


def first(data: dict) -> tuple[nn.Module, dict]:
    ids, mask = torch.tensor(data["input_ids"]), torch.tensor(data["attention_mask"])
    model, out = original.randomise(original.stage1(CHECKOUT, SIZES, ids, mask), 0), {}
    normal = lambda x: nn.functional.normalize(x, dim=-1)  # noqa: E731
    watch(model.vision_proj, out, "image_embeds", lambda x: normal(x)[:, -1])
    watch(model.text_proj, out, "text_embeds", normal)
    loss = model({"image": torch.tensor(data["images"]), "caption": list(range(ROWS))}).loss
    loss.backward()
    return model, out | {"loss": loss.detach().numpy()} | halves(model, {}) | trained(model)


def second(data: dict, begun: dict) -> tuple[nn.Module, dict]:
    model = original.stage2(CHECKOUT, SIZES, data["target_image"], data["target_text"], reverse=True)
    original.randomise(model, 1).load_state_dict(begun, strict=False)
    images, out, before = torch.tensor(data["images"]), {}, {}
    watch(model.encode_task_layer, before, "z")
    model.get_discrete_tokens(images)
    with torch.no_grad():  # codes where the vectors are, or nearly all would choose one
        z = torch.tensor(before["z"]).flatten(0, 1)[:: ROWS * 2]
        model.quantize.embedding.weight.copy_((z + 0.1 * torch.randn(z.shape)).half().float())
    watch(model.Qformer.bert, out, "queries", lambda x: x.last_hidden_state)
    watch(model.encode_task_layer, out, "z")
    watch(model.quantize, out, "quantized", lambda x: x[0])
    watch(model.blocks[-1], out, "reconstruction")
    watch(model.distill_image_proj, out, "image", lambda x: x[:, 0])
    watch(model.distill_text_proj, out, "text")
    found = model({"image": images, "caption": None})
    found.loss.backward()
    names = {"codes": "embed", "image_error": "distil_image", "text_error": "distil_text"}
    names |= {"reconstruction_error": "recon_s"}
    out |= {ours: getattr(found, f"loss_{theirs}").detach().numpy() for ours, theirs in names.items()}
    out |= {"loss": found.loss.detach().numpy(), "ids": model.get_discrete_tokens(images).numpy()}
    out["features"] = model.get_discrete_features_for_decode(images).detach().numpy()
    return model, out | halves(model, begun) | trained(model)


def third(data: dict, begun: dict) -> dict:
    """Without a Reverse Q-Former, and the released class with the same weights."""
    model, images, out = (
        original.stage2(CHECKOUT, SIZES, data["target_image"], None, reverse=False), torch.tensor(data["images"]), {}
    )  # fmt: skip
    same = {name: x for name, x in begun.items() if not name.startswith(("distill", "reverse", "Reverse"))}
    original.randomise(model, 2).load_state_dict(same, strict=False)
    watch(model.distill_image_proj, out, "image")
    found = model({"image": images, "caption": None})
    found.loss.backward()
    out["loss"] = found.loss.detach().numpy()
    out |= trained(model, lambda name: "image" in name or name.startswith(("encode", "quantize")))
    out |= halves(model, same)
    released = original.released(CHECKOUT, SIZES, reverse=False).eval()
    missing, _ = released.load_state_dict(model.state_dict(), strict=False)
    assert not missing, missing
    ids, _ = released.get_codebook_indices(images)
    out["released/ids"], out["released/features"] = ids.numpy(), released.get_codebook_entry(ids).detach().numpy()
    return out


@torch.no_grad()
def former() -> dict:
    config = transformers.Blip2QFormerConfig(
        vocab_size=3, hidden_size=12, num_attention_heads=2, num_hidden_layers=3, intermediate_size=14,
        cross_attention_frequency=2, encoder_hidden_size=10,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = original.randomise(transformers.Blip2QFormerModel(config), 3)
    queries, states = torch.randn(2, 5, 12), torch.randn(2, 7, 10)
    later = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 5, 5)
    output = model(queries, attention_mask=later, encoder_hidden_states=states).last_hidden_state
    return {"queries": queries.numpy(), "states": states.numpy(), "output": output.numpy()} | halves(model, {})


def main() -> dict[str, np.ndarray]:
    data = inputs()
    with tempfile.TemporaryDirectory() as folder, original.one_process(Path(folder)):
        one, stage1 = first(data)
    two, stage2 = second(data, one.state_dict())
    parts = {"inputs": data, "stage1": stage1, "stage2": stage2, "down": third(data, two.state_dict())}
    parts["former"] = former()
    return {f"{part}/{name}": x for part, values in parts.items() for name, x in values.items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("seed.npz"), **main())
