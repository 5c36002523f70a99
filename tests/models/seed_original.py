"""AILab-CVC/SEED's own classes at any size, from a checkout: for tests/goldens/make_seed.py and test_seed_parity.py.

What is replaced is listed here, and none of it is arithmetic: sizes that the files state as numbers; which branches are
on; an indentation for which a file does not parse; imports that are not installed, or that transformers 5 has moved or
dropped; and networks that the constructors would download (tokenizer, target encoders), which hand out fixed arrays.
"""

import contextlib
import dataclasses
import functools
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

BASE = "lavis.models.blip2_models"


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int = 12
    depth: int = 4  # of the Q-Former
    heads: int = 3
    hidden: int = 16
    vocab: int = 17
    length: int = 6
    embed: int = 7  # of the contrast
    side: int = 8  # of a picture; patches of 4
    image_width: int = 10
    tower_depth: int = 2
    codes: int = 16
    code_dim: int = 4
    blocks: int = 2
    reverse_depth: int = 1
    image_dim: int = 9
    text_dim: int = 5
    text_queries: int = 3
    down: tuple[int, int, int] = (8, 6, 3)


def stub(name: str, **values) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, value in values.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def anything(name: str) -> types.ModuleType:
    """A module whose names are all nothing."""

    def found(wanted: str):
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return nothing

    return stub(name, __getattr__=found)


def nothing(*args, **kwargs):
    return nothing


class Tokens(dict):
    __getattr__ = dict.__getitem__

    def to(self, device):
        return self


class Fixed(nn.Module):
    """A frozen network that says what it was told."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def to(self, *args):
        return self

    def forward(self, *args):
        return self.answer


def prepare(checkout: Path) -> None:
    """What must be there before one of their files is imported."""
    root = checkout / "SEED_Tokenizer"
    for name in ("lavis", "lavis.common", "lavis.models", BASE, "lavis.models.blip_models"):
        stub(name, __path__=[str(root / name.replace(".", "/"))])
    for name in ("timm", "timm.models", "fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        stub(name, __path__=[])
    for name in (
        "timm.models.vision_transformer", "timm.models.registry", "timm.models.helpers", "omegaconf",
        "fairscale.nn.checkpoint.checkpoint_activations", "lavis.common.utils",
    ):  # fmt: skip
        anything(name)
    stub("timm.models.registry", register_model=lambda made: made)
    pair = lambda x: x if isinstance(x, tuple) else (x, x)  # noqa: E731
    stub("timm.models.layers", to_2tuple=pair, trunc_normal_=nn.init.trunc_normal_, drop_path=nothing, DropPath=nothing)
    stub("lavis.common.registry", registry=types.SimpleNamespace(register_model=lambda name: lambda made: made))
    utils = stub(
        "lavis.common.dist_utils", download_cached_file=nothing, is_dist_avail_and_initialized=lambda: True,
        get_world_size=torch.distributed.get_world_size, get_rank=torch.distributed.get_rank,
    )  # fmt: skip
    sys.modules["lavis.common"].dist_utils = utils
    stub("lavis.models.blip_models.blip_outputs", BlipOutput=types.SimpleNamespace, BlipOutputFeatures=None)
    from transformers import modeling_utils, pytorch_utils

    modeling_utils.apply_chunking_to_forward = pytorch_utils.apply_chunking_to_forward
    modeling_utils.prune_linear_layer = pytorch_utils.prune_linear_layer
    modeling_utils.find_pruneable_heads_and_indices = nothing
    if not hasattr(transformers, "file_utils"):
        stub("transformers.file_utils", ModelOutput=transformers.utils.ModelOutput)
    former = importlib.import_module(f"{BASE}.Qformer_casual")
    invert = lambda self, mask: (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min  # noqa: E731
    for made in (former.BertModel, former.BertLMHeadModel):
        made.init_weights = made.resize_token_embeddings = nothing
        made.get_head_mask = lambda self, mask, count: [None] * count
        made.invert_attention_mask = invert


def base(s: Sizes, ids: torch.Tensor, mask: torch.Tensor) -> type:
    """Blip2Base, whose parts are theirs, at these sizes."""
    former = sys.modules[f"{BASE}.Qformer_casual"]
    eva = importlib.import_module("lavis.models.eva_vit")

    class Tokenizer:
        """A text is its row of the fixed ids."""

        def __len__(self):
            return s.vocab

        def __call__(self, texts, **options):
            return Tokens(input_ids=ids[torch.tensor(texts)], attention_mask=mask[torch.tensor(texts)])

    class Base(nn.Module):
        device = torch.device("cpu")

        def maybe_autocast(self):
            return contextlib.nullcontext()

        def init_tokenizer(self):
            return Tokenizer()

        def init_vision_encoder(self, *args):
            norm = functools.partial(nn.LayerNorm, eps=1e-5)
            tower = eva.VisionTransformer(
                img_size=s.side, patch_size=4, embed_dim=s.image_width, depth=s.tower_depth, num_heads=2,
                mlp_ratio=1.5, qkv_bias=True, norm_layer=norm,
            )  # fmt: skip
            return tower, norm(s.image_width)

        def init_Qformer(self, queries, width, every=2):
            config = transformers.BertConfig(
                vocab_size=s.vocab, hidden_size=s.width, num_attention_heads=s.heads, intermediate_size=s.hidden,
                num_hidden_layers=s.depth if queries == 32 else s.reverse_depth, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, max_position_embeddings=s.length, pad_token_id=0,
            )  # fmt: skip
            config.encoder_width, config.query_length = width, queries
            config.add_cross_attention, config.cross_attention_freq = True, every
            return former.BertLMHeadModel(config), nn.Parameter(torch.zeros(1, queries, s.width))

    return Base


def made_from(file: Path, name: str, changes: dict[str, str], **values) -> types.ModuleType:
    """Their file with these words changed, each of which must be there, and these names of its own replaced."""
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, f"{file} says nothing of {old!r}"
        text = text.replace(old, new)
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    exec(compile(text, str(file), "exec"), module.__dict__)
    for key, value in values.items():
        setattr(module, key, value)
    return module


def sized(s: Sizes) -> dict[str, str]:
    first, second, third = s.down
    return {
        "num_heads=12": f"num_heads={s.heads}",
        "hidden_size, 256, bias": f"hidden_size, {first}, bias",
        "nn.Linear(256, 128, bias": f"nn.Linear({first}, {second}, bias",
        "nn.Linear(128, 32, bias": f"nn.Linear({second}, {third}, bias",
        "num_query_token * 32": f"num_query_token * {third}",
    }


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """In float16's values, so that files may hold them so."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scales = name.endswith("weight") and ("norm" in name.lower() or "ln_vision" in name)
            p.copy_(((1.0 if scales else 0.0) + 0.3 * torch.randn(p.shape)).half().float())
        if hasattr(model, "temp"):
            model.temp.fill_(0.5)
    return model.eval()


def stage1(checkout: Path, s: Sizes, ids: torch.Tensor, mask: torch.Tensor) -> nn.Module:
    """torch.distributed must run, with one process."""
    prepare(checkout)
    stub(f"{BASE}.blip2", Blip2Base=base(s, ids, mask), compute_sim_matrix=None, disabled_train=nothing)
    module = importlib.import_module(f"{BASE}.blip2_qformer_casual")
    model = module.Blip2QformerCasual(embed_dim=s.embed, max_txt_len=s.length)
    model.Qformer.cls = None
    return model


def stage2(checkout: Path, s: Sizes, image: np.ndarray, text: np.ndarray | None, reverse: bool) -> nn.Module:
    """image [B E] and text [B R W] are what the targets say. With `reverse` a Reverse Q-Former reads the picture."""
    prepare(checkout)
    made = base(s, torch.zeros(1, 1), torch.zeros(1, 1))
    stub(f"{BASE}.blip2", Blip2Base=made, compute_sim_matrix=None, disabled_train=nothing)
    changes = {
        "\n     def get_discrete_features_for_decode": "\n    def get_discrete_features_for_decode",
        "self.depth = 4": f"self.depth = {s.blocks}",
        "codebook_embed_dim = 32": f"codebook_embed_dim = {s.code_dim}",
        "n_embed = 8192": f"n_embed = {s.codes}",
        "image_features_dim = 1024": f"image_features_dim = {s.image_dim}",
        "text_features_dim = 768": f"text_features_dim = {s.text_dim}",
        "num_reverse_token_text = 77": f"num_reverse_token_text = {s.text_queries}",
        "self.distill_text = False": f"self.distill_text = {text is not None}",
        "self.use_qformer_image = True": f"self.use_qformer_image = {reverse}",
        **sized(s),
    }
    seen = Fixed(types.SimpleNamespace(image_embeds=torch.tensor(image)))
    told = Fixed((None if text is None else torch.tensor(text), None))
    module = made_from(
        checkout / "SEED_Tokenizer/lavis/models/blip2_models/blip2_qformer_codebook_all_image.py", f"{BASE}.codebook",
        changes, FrozenCLIPEmbedder=lambda: told,
        CLIPVisionModelWithProjection=types.SimpleNamespace(from_pretrained=lambda *a, **k: seen),
    )  # fmt: skip
    return module.Blip2QformerCodebookAllImage()


def released(checkout: Path, s: Sizes, reverse: bool) -> nn.Module:
    """The class that the released language models see and draw with."""
    prepare(checkout)
    made = base(s, torch.zeros(1, 1), torch.zeros(1, 1))
    stub("qformer", __path__=[])
    stub("qformer.blip2", Blip2Base=made, disabled_train=nothing)
    stub("qformer.vit", Block=importlib.import_module("lavis.models.vit").Block)
    file = checkout / "MultiModalLLM/src/tokenizer/qformer/qformer_quantizer.py"
    module = made_from(file, "qformer.qformer_quantizer", sized(s))
    return module.Blip2QformerQuantizer(
        codebook_embed_dim=s.code_dim, n_embed=s.codes, decode_depth=s.blocks, image_features_dim=s.image_dim,
        use_qformer_image=reverse,
    )  # fmt: skip


@contextlib.contextmanager
def one_process(folder: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def parameters(model: nn.Module) -> dict[str, np.ndarray]:
    """By the names of a checkpoint."""
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, np.ndarray]:
    """0 where none came."""
    none = lambda p: torch.zeros(p.shape) if p.grad is None else p.grad  # noqa: E731
    return {name: none(p).numpy() for name, p in model.named_parameters()}
