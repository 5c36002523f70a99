"""Makes positions.npz: grids of positions resized by the libraries' own functions.

    hf              transformers.ViTModel, interpolate_pos_encoding=True
    hf_registers    transformers.Dinov2WithRegistersModel
    timm            timm.layers.resample_abs_pos_embed
    open_clip       open_clip.model.resize_pos_embed (squares only)
    dino            VisionTransformer.interpolate_pos_encoding of facebookresearch/dino, from a clone

big_vision calls scipy.ndimage.zoom(order=1), which the tests do too. Needs torch, torchvision, transformers, timm and
open_clip: python tests/goldens/make_positions.py CLONE_OF_DINO
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers
from open_clip.model import resize_pos_embed
from timm.layers import resample_abs_pos_embed

PATCH, SIDE, WIDTH = 4, 7, 3
SIZES = ((12, 9), (4, 3), (7, 10), (10, 10), (3, 3))  # rows, columns


def hf(model: type, config: type, table: torch.Tensor, **more) -> dict[tuple, torch.Tensor]:
    sizes = {"image_size": PATCH * SIDE, "patch_size": PATCH, "hidden_size": WIDTH, "num_attention_heads": 1}
    embeddings = model(config(**sizes, num_hidden_layers=1, **more)).embeddings
    embeddings.position_embeddings.data = table[None]

    def resized(rows: int, columns: int) -> torch.Tensor:
        tokens = torch.zeros(1, 1 + rows * columns, WIDTH)
        return embeddings.interpolate_pos_encoding(tokens, rows * PATCH, columns * PATCH)[0]

    return {size: resized(*size) for size in SIZES}


def open_clip(table: torch.Tensor) -> dict[tuple, torch.Tensor]:
    def resized(rows: int, columns: int) -> torch.Tensor:
        state = {"visual.positional_embedding": table}
        resize_pos_embed(state, types.SimpleNamespace(visual=types.SimpleNamespace(grid_size=(rows, columns))))
        return state["visual.positional_embedding"]

    return {size: resized(*size) for size in SIZES if size[0] == size[1]}


def dino(clone: str, table: torch.Tensor) -> dict[tuple, torch.Tensor]:
    sys.path.insert(0, clone)
    import vision_transformer

    model = vision_transformer.VisionTransformer([PATCH * SIDE], PATCH, embed_dim=WIDTH, depth=1, num_heads=1)
    model.pos_embed.data = table[None]

    def resized(rows: int, columns: int) -> torch.Tensor:
        tokens = torch.zeros(1, 1 + rows * columns, WIDTH)
        return model.interpolate_pos_encoding(tokens, rows * PATCH, columns * PATCH)[0]

    return {size: resized(*size) for size in SIZES}


@torch.no_grad()
def main(clone: str) -> dict[str, np.ndarray]:
    table = torch.from_numpy(np.random.default_rng(0).standard_normal((1 + SIDE**2, WIDTH), np.float32))
    registers = transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig
    found = {
        "hf": hf(transformers.ViTModel, transformers.ViTConfig, table),
        "hf_registers": hf(*registers, table, num_register_tokens=2),
        "timm": {size: resample_abs_pos_embed(table[None], list(size))[0] for size in SIZES},
        "open_clip": open_clip(table),
        "dino": dino(clone, table),
    }
    out = {f"{name}_{h}_{w}": x.numpy() for name, sizes in found.items() for (h, w), x in sizes.items()}
    return {"table": table.numpy(), **out}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("positions.npz"), **main(sys.argv[1]))
