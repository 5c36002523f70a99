"""Trains the vocabulary of `docs`: `python -m mmjax.data.build_docs_bpe`; the result is `assets/docs_bpe.json`.

It saw the documents of Python 3.11 and NumPy 2.3. Other versions are spelled with the same 2,048 ids, if with a few
more of them.
"""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmjax.data import docs

VOCAB_SIZE = 2048


def build() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [text for corpus in docs.CORPORA for name, text in docs.documents(corpus).items()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[docs.END, docs.TURN, docs.TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256 bytes
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core


if __name__ == "__main__":
    (docs.ASSETS / "docs_bpe.json").write_text(build().to_str(pretty=True) + "\n", encoding="utf-8")
