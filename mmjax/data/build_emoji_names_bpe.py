"""Trains the vocabulary of `emoji_names`: `python -m mmjax.data.build_emoji_names_bpe`.

The result is committed as `assets/emoji_names_bpe.json`; a test builds it again and compares. It is learned from the
training names only: a piece that no training name holds would stay as it was drawn at random.
"""

from mmjax.data import emoji, emoji_names, emoji_text
from mmjax.text import bpe

VOCAB_SIZE = 1024  # without the tags of languages


def texts() -> list[str]:
    pack, rows = emoji.pack(), emoji_text.members("train")
    named = [pack.names, *([one["name"] for one in pack.languages[language]] for language in emoji_names.LANGUAGES)]
    return [names[n] for names in named for n in rows]


def build() -> bpe.Tokenizer:
    tokenizer = bpe.train(texts(), VOCAB_SIZE)
    tokenizer.core.add_special_tokens([emoji_names.tag(language) for language in emoji_names.LANGUAGES])
    return tokenizer


if __name__ == "__main__":
    build().save(emoji.ASSETS / "emoji_names_bpe.json")
