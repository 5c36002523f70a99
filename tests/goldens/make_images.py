"""Makes images.npz: what torchvision's transform (as OpenAI's CLIP and open_clip use it) and transformers' two
CLIPImageProcessor backends make of real photographs, and torch's resizing of grids of positions.

transformers 5.24 differs from the original in two ways that are no matter of rounding: it rounds the cut's corner down
where the original rounds to the nearest (one pixel off for some odd sizes), and it lays transparent images on white
where the original drops alpha. The stored differences are of opaque images, after the original's cut: only resizing is
left.

Photographs: scikit-image's public-domain and CC0 set (chelsea, astronaut, coffee, rocket, camera), made small. Run with
torch, torchvision, transformers, open_clip and scikit-image installed: python tests/goldens/make_images.py
"""

from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIZE = 48
MEAN, STD = (np.array(x, np.float32) for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))


def photographs() -> dict[str, Image.Image]:
    """Landscape, portrait, nearly square, grey, with alpha, smaller than the target; odd sizes."""
    names = ("chelsea", "astronaut", "coffee", "rocket", "camera")
    cat, person, cup, rocket, camera = (Image.fromarray(getattr(skimage.data, name)()) for name in names)
    alpha = Image.radial_gradient("L").resize((61, 53))
    with_alpha = cat.resize((61, 53))
    with_alpha.putalpha(alpha)
    return {
        "landscape": cat.resize((97, 65)),
        "portrait": person.crop((60, 0, 435, 512)).resize((61, 86)),  # 67 rows after resizing: 9.5 to cut off
        "wide": cup.resize((101, 57)),
        "small": rocket.resize((43, 31)),
        "grey": camera.resize((75, 64)),
        "alpha": with_alpha,
    }


def original() -> Compose:
    """openai/CLIP, clip/clip.py, _transform."""
    return Compose([
        Resize(SIZE, interpolation=InterpolationMode.BICUBIC), CenterCrop(SIZE), lambda image: image.convert("RGB"),
        ToTensor(), Normalize(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
    ])  # fmt: skip


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Normalised [3 H W] -> the uint8 [H W 3] it was made of, after a check that it was."""
    pixels = pixels.transpose(1, 2, 0)
    exact = 255 * (pixels * STD + MEAN)
    assert np.abs(exact - exact.round()).max() < 1e-3
    return exact.round().astype(np.uint8)


def grids() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    grid = rng.standard_normal((7, 5, 3), np.float32)
    text = rng.standard_normal((11, 3), np.float32)
    channels_first = torch.from_numpy(grid).permute(2, 0, 1)[None]
    arrays = {"grid": grid, "text": text}
    for height, width in ((12, 9), (4, 3), (7, 10)):
        for name, antialias in (("cubic", False), ("cubic_antialias", True)):
            out = F.interpolate(channels_first, (height, width), mode="bicubic", antialias=antialias)
            arrays[f"{name}_{height}_{width}"] = out[0].permute(1, 2, 0).numpy()
    for length in (17, 6):
        out = F.interpolate(torch.from_numpy(text).T[None], length, mode="linear", align_corners=False)
        arrays[f"linear_{length}"] = out[0].T.numpy()
    return arrays


def main() -> None:
    backends = {"tv": CLIPImageProcessor, "pil": CLIPImageProcessorPil}
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    transform = original()
    arrays = grids()
    for name, photograph in photographs().items():
        arrays[f"{name}_photo"] = np.asarray(photograph)
        normalised = transform(photograph).numpy()
        arrays[f"{name}_openai"] = openai = to_bytes(normalised)
        if name == "landscape":
            arrays["landscape_normalised"] = normalised[:, ::8, ::8].transpose(1, 2, 0)
        for backend, processor in backends.items():
            whole = processor(**sizes)(photograph, return_tensors="pt")["pixel_values"][0]
            resized = processor(**sizes, do_center_crop=False)(photograph, return_tensors="pt")["pixel_values"][0]
            same_cut = to_bytes(CenterCrop(SIZE)(resized).numpy()).astype(np.int16) - openai
            if name != "alpha":
                arrays[f"{name}_{backend}_minus_openai"] = same_cut.astype(np.int8)  # nearly all zero, so it packs well
            for title, difference in (
                ("as it is", to_bytes(whole.numpy()) - openai.astype(int)),
                ("same cut", same_cut),
            ):
                print(f"{name:10} {backend:4} {title}: max {np.abs(difference).max():3}, "
                      f"differing {(difference != 0).mean():.4f}")  # fmt: skip
    np.savez_compressed(Path(__file__).with_name("images.npz"), **arrays)


if __name__ == "__main__":
    main()
