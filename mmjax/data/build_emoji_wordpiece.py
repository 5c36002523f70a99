"""Trains the emoji pack's vocabulary of word pieces: `python -m mmjax.data.build_emoji_wordpiece`.

For BERT trained from scratch on the pack's English texts. The result is committed as `assets/emoji_wordpiece.txt`; a
test builds it again and compares. As in `build_emoji_bpe`, words of held-out concepts are in it.
"""

from mmjax.data import emoji, emoji_text
from mmjax.text import wordpiece

VOCAB_SIZE = 2048
FORM_COUNT = 30  # each form of a mention counts like a common keyword, so that its words get ids of their own


def texts() -> list[str]:
    """A sentence for each concept, and the words around mentions."""
    concepts = emoji.pack().concepts
    forms = [" ".join(form).replace("{}", "") for form in emoji_text.MENTIONS]
    return [f"{one.name}: {' '.join(one.keywords)}" for one in concepts] + FORM_COUNT * forms


def build() -> wordpiece.Tokenizer:
    return wordpiece.train(texts(), VOCAB_SIZE)


if __name__ == "__main__":
    build().save(emoji.ASSETS / "emoji_wordpiece.txt")
