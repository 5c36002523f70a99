"""Trains the vocabulary of scenes: `python -m mmjax.data.build_scenes_bpe`.

The result is committed as `assets/scenes_bpe.json`; a test builds it again and compares. Words of the templates and of
the names of scenes become tokens of their own where they stand in the texts below, and so do the numbers from 0.00 to
1.00 and from 0 to 100: as the texts are few, pairs are merged until each word is one token. Other words are spelled in
pieces, down to bytes.
"""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmjax.data import emoji, scene_questions, scene_text, scene_turns

VOCAB_SIZE = 4096  # at most; merges end where every word is one token
TEMPLATES = (
    *scene_turns.WHAT, *scene_turns.POINT, *scene_turns.WHERE, *scene_turns.WHICH, *scene_turns.IS, *scene_turns.COUNT,
    *scene_turns.SIDE, *scene_turns.BIGGER, *scene_turns.CAPTION, *scene_turns.SPOTTING, *scene_turns.CHAIN,
    *scene_turns.CHAIN_LEFT, *scene_turns.FOLLOWING, "yes", "no", "a, b and c: 3", "left of it",
)  # fmt: skip


def texts() -> list[str]:
    words = [words for words, _, _ in scene_turns.SIDES.values()]
    numbers = [f"[{i / 100:.2f},{i / 100:.2f}] [{i}, {i}] {i}" for i in range(101)]
    names = [scene_questions.names(scene_questions.MOST)]
    # With and without a blank before. A word has to come twice for its pairs to be merged.
    return 2 * [
        *TEMPLATES,
        *words,
        *(f"a {word}" for word in (*words, "behind")),
        *numbers,
        *(f"{name}, {name}" for name in sum(names, ())),
    ]


def build() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    blank, mark = "\u0120", r"\[\],.:;?()\-"  # as ByteLevel writes a blank
    pieces = rf"{blank}?\d+\.\d+|{blank}?\d+|{blank}?[^{blank}{mark}\d]+|{blank}?[{mark}]"
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated"),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=list(scene_text.SPECIAL), min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    core.train_from_iterator(texts(), trainer)
    return core


if __name__ == "__main__":
    (emoji.ASSETS / "scenes_bpe.json").write_text(build().to_str(pretty=True) + "\n", encoding="utf-8")
