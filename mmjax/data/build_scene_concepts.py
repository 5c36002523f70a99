"""Orders concepts by how far each looks from all others: `python -m mmjax.data.build_scene_concepts`.

The result is committed as `assets/scene_concepts.json`, codes in order: the first 64 are the vocabulary of 64 concepts,
and so on. Only training drawings are looked at, never the held-out artist's. Left out are concepts that are held out,
that fewer than five training artists draw, or whose name is longer than two words.

A drawing is described by its colours and its outline on a grid of 8 x 8. A concept's margin is the distance of its
artists' mean description from the nearest concept's among those chosen so far, divided by how much its artists differ.
The next one chosen has the largest margin.
"""

import json

import numpy as np

from mmjax.data import emoji

PATH = emoji.ASSETS / "scene_concepts.json"
COUNT = 600
GRID = 8
ARTISTS = 5  # that draw a concept, at least


def described(drawings: np.ndarray) -> np.ndarray:
    """Cut-outs [M 64 64 4] -> [M F]: premultiplied colours and alpha, of each cell."""
    cells = emoji.resize(drawings, GRID).astype(np.float32) / 255
    return np.concatenate([cells[..., :3] * cells[..., 3:], 2 * cells[..., 3:]], -1).reshape(len(cells), -1)


def build() -> list[str]:
    """Codes, the most distinct first."""
    pack = emoji.pack()
    artists, concepts = pack.split("train")
    features = described(emoji.cutouts(artists, concepts))
    candidates, means, spreads = [], [], []
    for n in np.unique(concepts):
        mine = features[concepts == n]
        if len(mine) >= ARTISTS and len(pack.concepts[n].name.split()) <= 2:
            candidates.append(pack.concepts[n].code)
            means.append(mine.mean(0))
            spreads.append(np.sqrt(((mine - means[-1]) ** 2).sum(-1).mean()))
    means, spreads = np.stack(means), np.array(spreads)
    order, nearest = [int(spreads.argmin())], np.full(len(means), np.inf)
    while len(order) < min(COUNT, len(means)):
        nearest = np.minimum(nearest, np.sqrt(((means - means[order[-1]]) ** 2).sum(-1)))
        margin = nearest / spreads
        margin[order] = -1
        order.append(int(margin.argmax()))
    return [candidates[i] for i in order]


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=0) + "\n", encoding="utf-8")
