"""Byte-level byte-pair encoding from local files, as GPT-2's and most later models' folders hold it.

Source: Radford et al. 2019, section 2.2: merges over the 256 bytes, so no text is unknown; the text is first cut into
words, numbers and the rest, each with the space before it. Nothing is downloaded.
"""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

VOCABULARY, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
END = "<|endoftext|>"  # GPT-2's only special token


def load(folder: str | Path) -> tokenizers.Tokenizer:
    """From tokenizer.json, which says everything, or from vocab.json and merges.txt, whose text is cut as GPT-2's."""
    folder = Path(folder)
    whole, vocabulary, merges = folder / WHOLE, folder / VOCABULARY, folder / MERGES
    if not whole.exists() and not (vocabulary.exists() and merges.exists()):
        raise FileNotFoundError(f"{folder} holds neither {WHOLE} nor {VOCABULARY} and {MERGES}; copy its tokenizer too")
    try:
        if whole.exists():
            core = tokenizers.Tokenizer.from_file(str(whole))
        else:
            core = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
            core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            core.decoder = decoders.ByteLevel()
            if core.token_to_id(END) is not None:
                core.add_special_tokens([AddedToken(END, normalized=False)])
    except Exception as error:  # the library raises bare Exception
        found = whole if whole.exists() else f"{vocabulary} or {merges}"
        raise ValueError(f"{found} is not a tokenizer of the tokenizers library: {error}; copy it again") from error
    core.no_truncation()
    core.no_padding()
    return core
