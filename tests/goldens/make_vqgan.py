"""Makes vqgan.npz and kl.npz with the authors' own code: CompVis/taming-transformers' encoder, quantiser, decoder,
discriminator and losses; LTH14/mar's KL autoencoder with CompVis/latent-diffusion's loss. Tiny models with random
weights: what they compute, both players' losses before and after the discriminator's start, each player's gradients.

Channels are few, so norms have 2 groups in place of 32; LPIPS reads two small convolutions in place of VGG's.
Needs torch and the paths of checkouts (commits 3ba01b2, fe470ac and a506df5):

    python tests/goldens/make_vqgan.py TAMING MAR LATENT_DIFFUSION
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
WIDTH, LEVELS, BLOCKS, GROUPS, SIDE = 4, (1, 2), 1, 2, 24  # grids of 24 and 12
CODES, DIM, LATENT, START = 11, 3, 6, 10
MAPS = (2, 3)  # channels of the maps that LPIPS reads


def load(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def originals(taming: Path, mar: Path, diffusion: Path) -> list[types.ModuleType]:
    """Modules by their files: the packages want lightning, torchvision and a download."""
    for name in ("torchvision", "taming", "taming.modules", "taming.modules.losses", "taming.modules.discriminator"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].models = None
    sys.modules["taming.util"] = types.ModuleType("taming.util")
    sys.modules["taming.util"].get_ckpt_path = None
    root = taming / "taming" / "modules"
    load("taming.modules.util", root / "util.py")
    lpips = load("taming.modules.losses.lpips", root / "losses" / "lpips.py")
    load("taming.modules.discriminator.model", root / "discriminator" / "model.py")
    losses = load("taming.modules.losses.vqperceptual", root / "losses" / "vqperceptual.py")
    codec = load("codec", root / "diffusionmodules" / "model.py")
    quantize = load("quantize", root / "vqvae" / "quantize.py")
    vae = load("vae", mar / "models" / "vae.py")
    losses_kl = load("losses_kl", diffusion / "ldm" / "modules" / "losses" / "contperceptual.py")
    for one in (codec, vae):
        one.Normalize = lambda channels: torch.nn.GroupNorm(GROUPS, channels, eps=1e-6)

    class Small(lpips.LPIPS):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.scaling_layer, self.chns = lpips.ScalingLayer(), MAPS
            self.net = Maps()
            for i in range(5):
                self.add_module(f"lin{i}", lpips.NetLinLayer(MAPS[min(i, 1)], use_dropout=True))

    losses.LPIPS = losses_kl.LPIPS = Small
    return [codec, quantize, losses, vae, losses_kl]


class Maps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = zip((3, *MAPS[:-1]), MAPS, strict=True)
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in sizes])

    def forward(self, x):
        out = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            out.append(x)
        return out


def randomise(*modules: torch.nn.Module) -> None:
    """Numbers of half precision, to be stored in it."""
    with torch.no_grad():
        for module in modules:
            for name, weight in module.named_parameters():
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                spread = 0.3 if weight.ndim < 2 else weight[0].numel() ** -0.5
                weight.copy_((mean + spread * torch.randn(weight.shape)).half())
                if ".lin" in name:
                    weight.copy_(weight.abs())


def arrays(prefix: str, named, dtype=np.float32) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": np.asarray(x.detach().numpy(), dtype) for name, x in named}


def gradients(prefix: str, loss: torch.Tensor, named: list) -> dict[str, np.ndarray]:
    found = torch.autograd.grad(loss, [weight for _, weight in named], retain_graph=True)
    return arrays(prefix, zip([name for name, _ in named], found, strict=True))


def both_players(call, kernel, named: list, judges: list) -> dict[str, np.ndarray]:
    """Losses before START and at it, and there each player's gradients. call: (player, step) -> (loss, log)."""
    golden = {}
    for when, step in (("before", START - 1), ("after", START)):
        (total, log), (told, told_log) = (call(player, step) for player in (0, 1))
        golden |= {f"{when}/total": total, f"{when}/told": told, f"{when}/d_weight": log["train/d_weight"]}
        golden |= {f"{when}/{name}": log[f"train/{name}"] for name in ("nll_loss", "g_loss")}
        golden |= {f"{when}/{name}": told_log[f"train/{name}"] for name in ("logits_real", "logits_fake")}
    golden = {name: x.detach().numpy() for name, x in golden.items()}
    return golden | gradients("gradients", total, named) | gradients("gradients_loss", told, judges)


def sizes(attention: tuple[int, ...], latent: int) -> dict:
    return {
        "ch": WIDTH, "out_ch": 3, "ch_mult": LEVELS, "num_res_blocks": BLOCKS, "attn_resolutions": attention,
        "in_channels": 3, "resolution": SIDE, "z_channels": latent,
    }  # fmt: skip


def vqgan(codec, quantize, losses) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "encoder": codec.Encoder(**sizes((12,), LATENT), double_z=False),
            "decoder": codec.Decoder(**sizes((12,), LATENT)),
            "quantize": quantize.VectorQuantizer(CODES, DIM, beta=0.25),
            "quant_conv": torch.nn.Conv2d(LATENT, DIM, 1),
            "post_quant_conv": torch.nn.Conv2d(DIM, LATENT, 1),
        }
    )
    loss = losses.VQLPIPSWithDiscriminator(
        START, codebook_weight=1.0, disc_num_layers=2, disc_weight=0.8, perceptual_weight=0.7, disc_ndf=4
    )
    randomise(model, loss)
    images = torch.rand(3, 3, SIDE, 16) * 2 - 1  # not square: attention goes by the side that the model was made for
    z = model["quant_conv"](model["encoder"](images))
    quantised, quantising, (perplexity, _, ids) = model["quantize"](z)
    made = model["decoder"](model["post_quant_conv"](quantised))
    last = model["decoder"].conv_out.weight

    def call(player: int, step: int):
        return loss(quantising, images, made, player, step, last_layer=last)

    golden = arrays("weights", model.named_parameters(), np.float16)
    golden |= arrays("weights_loss", loss.named_parameters(), np.float16)
    found = {"images": images, "z": z, "made": made, "quantising": quantising, "perplexity": perplexity}
    golden |= arrays("outputs", found.items()) | {"outputs/ids": ids.reshape(3, 12, 8).numpy()}
    judges = list(loss.discriminator.named_parameters(prefix="discriminator"))
    return golden | both_players(call, last, list(model.named_parameters()), judges)


def kl(vae, losses) -> dict[str, np.ndarray]:
    torch.manual_seed(1)
    vae.Encoder.__init__.__kwdefaults__.update(sizes((12,), LATENT))
    vae.Decoder.__init__.__kwdefaults__.update(sizes((), LATENT))
    model = vae.AutoencoderKL(embed_dim=LATENT, ch_mult=LEVELS)
    loss = losses.LPIPSWithDiscriminator(
        START, kl_weight=0.01, disc_num_layers=2, disc_weight=0.5, perceptual_weight=0.7
    )
    loss.discriminator = sys.modules["taming.modules.discriminator.model"].NLayerDiscriminator(3, ndf=4, n_layers=2)
    randomise(model, loss)
    with torch.no_grad():
        loss.logvar.zero_()
        model.quant_conv.bias[LATENT] = -30.0  # of one channel, some variances reach their bound
    images, noise = torch.rand(2, 3, 16, SIDE) * 2 - 1, torch.randn(2, LATENT, 8, 12)
    posterior = model.encode(images)
    made = model.decode(posterior.mean + posterior.std * noise)
    last = model.decoder.conv_out.weight

    def call(player: int, step: int):
        return loss(images, made, posterior, player, step, last_layer=last)

    golden = arrays("weights", model.named_parameters(), np.float16)
    named = [(name, x) for name, x in loss.named_parameters() if name != "logvar"]
    golden |= arrays("weights_loss", named, np.float16)
    found = {"images": images, "noise": noise, "mean": posterior.mean, "log_variance": posterior.logvar, "made": made}
    golden |= arrays("outputs", (found | {"kl": posterior.kl()}).items())
    judges = list(loss.discriminator.named_parameters(prefix="discriminator"))
    return golden | both_players(call, last, list(model.named_parameters()), judges)


if __name__ == "__main__":
    codec, quantize, losses, vae, losses_kl = originals(*map(Path, sys.argv[1:]))
    np.savez_compressed(HERE / "vqgan.npz", **vqgan(codec, quantize, losses))
    np.savez_compressed(HERE / "kl.npz", **kl(vae, losses_kl))
