"""Makes qformer.npz with salesforce/LAVIS's own code: stage 1 of BLIP-2, its forward as blip2_qformer.py and Qformer.py
hold it, on two processes over gloo with two rows each. Needs torch, transformers 5, and the path of a checkout (commit
506965b9c4a1) as the argument:

    python tests/goldens/make_qformer.py CHECKOUT

The tower is transformers' Blip2VisionModel without its last norm, which is LAVIS's ln_vision; the tokenizer hands out
fixed ids; what is drawn as a negative is fixed too. Qformer.py asks transformers for names that version 5 has moved or
dropped: they are put back, and none is about arithmetic.

B 4 rows in all, Q 5 queries, T 6 tokens, S 10 tokens of a picture.

    weights/NAME, inputs/{images,input_ids,attention_mask,image_id,image,text}    image, text: rows of the negatives
    outputs/queries [B Q D]      of the pass that the contrast reads
    outputs/{image,text}_embeds  of length 1
    outputs/match [3B 2]         logits: right pairs, wrong images, wrong texts
    outputs/captions [B T V]     logits of the pass over cached keys and values
    outputs/scores [B B]         compute_sim_matrix, pictures as rows, 2 candidates each; outputs/text_scores likewise
    plain/..., ids/...           with and without image_id: {itc,itm,itg}, the mean over processes; gradients/NAME, as
                                 DistributedDataParallel averages them; {image,text}_chances [B B] of being drawn
"""

import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn

CHECKOUT = Path(sys.argv[1])
ROWS, WORLD = 4, 2
NEGATIVES = {"image": [2, 0, 3, 1], "text": [1, 3, 0, 2]}
IDS = [7, 8, 7, 9]


def stub(name: str, **values) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, value in values.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def original() -> tuple[types.ModuleType, types.ModuleType, types.ModuleType]:
    """LAVIS's files, with what they import besides replaced."""
    nothing = lambda *args, **kwargs: None  # noqa: E731
    same = types.SimpleNamespace(register_model=lambda name: lambda made: made)
    for name in ("lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models", "lavis.models.blip_models"):
        stub(name, __path__=[str(CHECKOUT / name.replace(".", "/"))])
    up = lambda: dist.is_available() and dist.is_initialized()  # noqa: E731
    utils = stub(
        "lavis.common.dist_utils", download_cached_file=nothing, is_dist_avail_and_initialized=up,
        get_world_size=lambda: 1, get_rank=lambda: 0,
    )  # fmt: skip
    sys.modules["lavis.common"].dist_utils = utils
    stub("lavis.common.registry", registry=same)
    stub("lavis.common.utils", get_abs_path=nothing, is_url=nothing)
    quiet = types.SimpleNamespace(log_every=lambda rows, *args: rows)
    stub("lavis.common.logger", MetricLogger=lambda **kwargs: quiet)
    stub("lavis.models.eva_vit", create_eva_vit_g=nothing)
    stub("lavis.models.clip_vit", create_clip_vit_L=nothing)
    stub("omegaconf", OmegaConf=None)
    from transformers import modeling_utils, pytorch_utils

    modeling_utils.apply_chunking_to_forward = pytorch_utils.apply_chunking_to_forward
    modeling_utils.prune_linear_layer = pytorch_utils.prune_linear_layer
    modeling_utils.find_pruneable_heads_and_indices = nothing
    if not hasattr(transformers, "file_utils"):
        stub("transformers.file_utils", ModelOutput=transformers.utils.ModelOutput)

    from lavis.models.blip2_models import Qformer, blip2, blip2_qformer

    invert = lambda self, mask: (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min  # noqa: E731
    for made in (Qformer.BertModel, Qformer.BertLMHeadModel):
        made.init_weights = nothing
        made.get_head_mask = lambda self, mask, count: [None] * count
        made.invert_attention_mask = invert
    return Qformer, blip2, blip2_qformer


class Tower(nn.Module):
    num_features = 12

    def __init__(self):
        super().__init__()
        config = transformers.Blip2VisionConfig(
            hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=12,
            patch_size=4, layer_norm_eps=1e-5,
        )  # fmt: skip
        config._attn_implementation = "eager"
        whole = transformers.Blip2VisionModel(config)
        self.embeddings, self.encoder = whole.embeddings, whole.encoder

    def forward(self, images):
        return self.encoder(self.embeddings(images)).last_hidden_state


class Tokens(dict):
    __getattr__ = dict.__getitem__

    def to(self, device):
        return self


class Tokenizer:
    """A text is its row of the fixed ids."""

    bos_token_id, pad_token_id = 60, 0

    def __init__(self, ids: torch.Tensor, mask: torch.Tensor):
        self.ids, self.mask = ids, mask

    def __call__(self, texts, **options) -> Tokens:
        rows = torch.tensor(texts)
        return Tokens(input_ids=self.ids[rows], attention_mask=self.mask[rows])


def model(inputs: dict) -> nn.Module:
    Qformer, blip2, blip2_qformer = original()
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=9, pad_token_id=0,
    )  # fmt: skip
    config.encoder_width, config.query_length = 12, 5
    config.add_cross_attention, config.cross_attention_freq = True, 2
    whole = blip2_qformer.Blip2Qformer.__new__(blip2_qformer.Blip2Qformer)
    nn.Module.__init__(whole)
    whole.visual_encoder = Tower().requires_grad_(False)
    whole.ln_vision = blip2.LayerNorm(12)
    whole.Qformer = Qformer.BertLMHeadModel(config)
    whole.Qformer.cls.predictions.decoder.weight = whole.Qformer.bert.embeddings.word_embeddings.weight
    whole.query_tokens = nn.Parameter(torch.zeros(1, 5, 16))
    whole.vision_proj, whole.text_proj, whole.itm_head = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 2)
    whole.temp, whole.max_txt_len = nn.Parameter(torch.tensor(0.0)), 6
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in whole.named_parameters():
            scales = name.endswith("weight") and ("norm" in name.lower() or "ln_vision" in name)
            p.copy_((1.0 if scales else 0.0) + 0.3 * torch.randn(p.shape))
        whole.temp.fill_(0.5)
    whole.tokenizer = Tokenizer(torch.tensor(inputs["input_ids"]), torch.tensor(inputs["attention_mask"]))
    return whole.eval()


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = np.array([6, 4, 5, 5])  # as many tokens on each process, since each takes a mean of its own
    mask = (np.arange(6) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(3, 60, (ROWS, 6)) * mask
    ids[:, 0], ids[np.arange(ROWS), lengths - 1] = 1, 2
    images = rng.normal(size=(ROWS, 3, 12, 12)).astype(np.float32)
    return {"images": images, "input_ids": ids, "attention_mask": mask, "image_id": np.array(IDS)} | {
        name: np.array(rows) for name, rows in NEGATIVES.items()
    }


def step(rank: int, store: str, folder: str, case: str) -> None:
    """One process's part."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    data, rows = inputs(), list(range(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD))
    whole = model(data)
    order, chances = [NEGATIVES[name][row] for name in ("image", "text") for row in rows], []

    def fixed(weights, count):
        chances.append(weights.numpy().copy())
        return torch.tensor([order[len(chances) - 1]])

    torch.multinomial = fixed
    samples = {"image": torch.tensor(data["images"][rows]), "text_input": rows}
    if case == "ids":
        samples["image_id"] = torch.tensor(data["image_id"][rows])
    out = whole(samples)
    out.loss.backward()
    found = {f"{name}/{rank}": np.float32(out[f"loss_{their}"].item()) for name, their in
             (("itc", "itc"), ("itm", "itm"), ("itg", "lm"))}  # fmt: skip
    found |= {f"image_chances/{rank}": np.stack(chances[: len(rows)])}
    found |= {f"text_chances/{rank}": np.stack(chances[len(rows) :])}
    for name, p in whole.named_parameters():
        if p.requires_grad:
            dist.all_reduce(p.grad)
            found[f"gradients/{name}"] = (p.grad / WORLD).numpy()
    np.savez(f"{folder}/{rank}.npz", **found)


def losses(case: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(step, (f"{folder}/store", folder, case), nprocs=WORLD)
        parts = [dict(np.load(f"{folder}/{rank}.npz")) for rank in range(WORLD)]
    out = {name: x for name, x in parts[0].items() if name.startswith("gradients/")}
    for name in ("itc", "itm", "itg"):
        out[name] = np.mean([part[f"{name}/{rank}"] for rank, part in enumerate(parts)])
    for name in ("image_chances", "text_chances"):
        out[name] = np.concatenate([part[f"{name}/{rank}"] for rank, part in enumerate(parts)])
    return {f"{case}/{name}": x for name, x in out.items()}


@torch.no_grad()
def forward() -> dict[str, np.ndarray]:
    data = inputs()
    whole = model(data)
    normalise = nn.functional.normalize
    ids, mask = torch.tensor(data["input_ids"]), torch.tensor(data["attention_mask"])
    states = whole.ln_vision(whole.visual_encoder(torch.tensor(data["images"])))
    read = whole.Qformer.bert(
        query_embeds=whole.query_tokens.expand(ROWS, -1, -1), encoder_hidden_states=states, use_cache=True,
        return_dict=True,
    )  # fmt: skip
    text = whole.Qformer.bert(ids, attention_mask=mask, return_dict=True).last_hidden_state
    decoded = ids.clone()
    decoded[:, 0] = 60
    captions = whole.Qformer(
        decoded, attention_mask=torch.cat([torch.ones(ROWS, 5, dtype=int), mask], 1),
        past_key_values=read.past_key_values, return_dict=True,
    ).logits  # fmt: skip
    wrong = {name: torch.tensor(data[name]) for name in NEGATIVES}
    pictures = torch.cat([states, states[wrong["image"]], states])
    ids3, mask3 = (torch.cat([x, x, x[wrong["text"]]]) for x in (ids, mask))
    pairs = whole.Qformer.bert(
        ids3, query_embeds=whole.query_tokens.expand(3 * ROWS, -1, -1),
        attention_mask=torch.cat([torch.ones(3 * ROWS, 5, dtype=int), mask3], 1), encoder_hidden_states=pictures,
        return_dict=True,
    ).last_hidden_state  # fmt: skip

    images = torch.tensor(data["images"])
    loader = [{"image": images[:2]}, {"image": images[2:]}]
    loader = type("Loader", (list,), {"dataset": types.SimpleNamespace(text=list(range(ROWS)), image=range(ROWS))})(
        loader
    )
    scores, text_scores = sys.modules["lavis.models.blip2_models.blip2"].compute_sim_matrix(whole, loader, k_test=2)
    out = {
        "queries": read.last_hidden_state,
        "image_embeds": normalise(whole.vision_proj(read.last_hidden_state), dim=-1),
        "text_embeds": normalise(whole.text_proj(text[:, 0]), dim=-1),
        "match": whole.itm_head(pairs[:, :5]).mean(1),
        "captions": captions,
    }
    out = {f"outputs/{name}": x.numpy() for name, x in out.items()}
    out |= {"outputs/scores": scores, "outputs/text_scores": text_scores}
    # The decoder's weight is the table of words and its bias the head's.
    named = {name: x for name, x in whole.state_dict().items() if "decoder" not in name and "position_ids" not in name}
    return out | {f"weights/{name}": x.numpy() for name, x in named.items()}


if __name__ == "__main__":
    found = {f"inputs/{name}": x for name, x in inputs().items()} | forward() | losses("plain") | losses("ids")
    np.savez_compressed(Path(__file__).with_name("qformer.npz"), **found)
