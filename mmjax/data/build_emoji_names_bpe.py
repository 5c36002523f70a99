"""Trains the vocabulary of `emoji_names`: `python -m mmjax.data.build_emoji_names_bpe`.

Its texts are the names of the split "train" in all six languages, so that no held-out name has shaped it. The result
is committed as `assets/emoji_names_bpe.json`; a test builds it again and compares.
"""

from mmjax.data import emoji, emoji_names, emoji_text
from mmjax.text import bpe

VOCAB_SIZE = 2048


def texts() -> list[str]:
    pack = emoji.pack()
    names = [pack.names, *([one["name"] for one in pack.languages[language]] for language in emoji_names.LANGUAGES)]
    return [column[row] for column in names for row in emoji_text.members("train")]


def build() -> bpe.Tokenizer:
    return bpe.train(texts(), VOCAB_SIZE)


if __name__ == "__main__":
    build().save(emoji.ASSETS / "emoji_names_bpe.json")
