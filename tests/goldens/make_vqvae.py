"""Makes vqvae.npz: the network of section 4.1 and the loss of eq. 3 of van den Oord et al. 2017, written down from the
paper in torch's layers; random weights, outputs, loss, gradients. Needs torch.

No original can be installed: the authors' is a notebook for another framework.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
WIDTH, INNER, CODES, DIM, BETA = 6, 5, 9, 3, 0.4


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(WIDTH, INNER, 3, padding=1), nn.Conv2d(INNER, WIDTH, 1)

    def forward(self, x):
        return x + self.narrow(torch.relu(self.wide(torch.relu(x))))


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, WIDTH, 4, 2, 1), nn.Conv2d(WIDTH, WIDTH, 4, 2, 1)
        self.down, self.up = (nn.ModuleList([Residual(), Residual()]) for _ in range(2))
        self.code, self.back = nn.Conv2d(WIDTH, DIM, 1), nn.Conv2d(DIM, WIDTH, 3, padding=1)
        self.third, self.fourth = nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1), nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1)
        self.codes = nn.Parameter(torch.empty(CODES, DIM))

    def forward(self, images):
        x = self.second(torch.relu(self.first(images)))
        for block in self.down:
            x = block(x)
        z = self.code(torch.relu(x)).permute(0, 2, 3, 1)
        ids = ((z[..., None, :] - self.codes) ** 2).sum(-1).argmin(-1)
        chosen = self.codes[ids]
        x = self.back((z + (chosen - z).detach()).permute(0, 3, 1, 2))
        for block in self.up:
            x = block(x)
        made = self.fourth(torch.relu(self.third(torch.relu(x))))
        quantising = ((z.detach() - chosen) ** 2).mean() + BETA * ((z - chosen.detach()) ** 2).mean()
        return z, ids, made, ((images - made) ** 2).mean(), quantising


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Original()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.ndim < 2 else weight[0].numel() ** -0.5))
    images = torch.rand(2, 3, 16, 12) * 2 - 1
    with torch.no_grad():  # codes among the vectors, so that many are chosen
        model.codes.copy_(model(images)[0].reshape(-1, DIM)[::2][:CODES] + 0.03 * torch.randn(CODES, DIM))
    z, ids, made, reconstruction, quantising = model(images)
    (reconstruction + quantising).backward()
    golden = {f"weights/{name}": x.detach().numpy() for name, x in model.named_parameters()}
    golden |= {f"gradients/{name}": x.grad.numpy() for name, x in model.named_parameters()}
    found = {"images": images, "z": z, "ids": ids, "made": made, "reconstruction": reconstruction}
    found |= {"quantising": quantising}
    golden |= {f"outputs/{name}": x.detach().numpy() for name, x in found.items()}
    np.savez_compressed(HERE / "vqvae.npz", **golden)
