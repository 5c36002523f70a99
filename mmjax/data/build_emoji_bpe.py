"""Trains the emoji pack's vocabulary: `python -m mmjax.data.build_emoji_bpe`.

Its texts are the English names and keywords and the sentences of `text.prompts.PICTURES`. The result is committed as
`assets/emoji_bpe.json`; a test builds it again and compares. Words of held-out concepts are in it (their drawings are
what is held out, and a person knows the words, too). There are 3,500 different words and 2,048 ids, so rare words fall
into pieces that they share with others.
"""

import json
from pathlib import Path

from mmjax.text import bpe, prompts

ASSETS = Path(__file__).with_name("assets")
VOCAB_SIZE = 2048
TEMPLATE_COUNT = 30  # each sentence counts like a common keyword, so that its words get ids of their own


def texts() -> list[str]:
    """Every name and keyword, once for each concept that it belongs to, and the sentences around names."""
    concepts = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
    words = [text for concept in concepts for text in (concept["name"], *concept["keywords"])]
    return words + TEMPLATE_COUNT * prompts.fill([""], prompts.PICTURES)


def build() -> bpe.Tokenizer:
    return bpe.train(texts(), VOCAB_SIZE)


if __name__ == "__main__":
    build().save(ASSETS / "emoji_bpe.json")
