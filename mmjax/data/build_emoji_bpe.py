"""Trains the emoji pack's vocabulary on its English names and keywords: `python -m mmjax.data.build_emoji_bpe`.

The result is committed as `assets/emoji_bpe.json`; a test builds it again and compares. Words of held-out concepts are
in it (their drawings are what is held out, and a person knows the words, too). With 3,500 different words and 2,048 ids
rare words fall into pieces that they share with others.
"""

import json
from pathlib import Path

from mmjax.text import bpe

ASSETS = Path(__file__).with_name("assets")
VOCAB_SIZE = 2048


def texts() -> list[str]:
    """Every name and keyword, once for each concept that it belongs to."""
    concepts = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
    return [text for concept in concepts for text in (concept["name"], *concept["keywords"])]


def build() -> bpe.Tokenizer:
    return bpe.train(texts(), VOCAB_SIZE)


if __name__ == "__main__":
    build().save(ASSETS / "emoji_bpe.json")
