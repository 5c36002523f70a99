"""Makes tokenizer.npz: 1,000 captions, and the ids of open_clip's SimpleTokenizer and transformers' CLIPTokenizer.

Both are built here from the first 3,000 merges of CLIP's vocabulary (openai/CLIP, MIT licence; open_clip ships it),
which are stored beside it as clip_merges.txt.gz; tests/text/test_clip_bpe.py compares with the whole vocabulary under
the marker `parity`. Captions come from CLDR (the emoji pack's names and keywords in six languages) and from a list of
what is hard. Run where open_clip and transformers are installed: python tests/goldens/make_tokenizer.py
"""

import gzip
import json
import random
from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from transformers import CLIPTokenizer

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "mmjax" / "data" / "assets"
MERGES, LENGTH = 3000, 20
HARD = [
    "",
    " ",
    "\t\n",
    "a",
    "A",
    "I'm sure they'll say it's hers, we've said they're his: you'd know, don't you?",
    "IT'S THEY'LL WE'VE",
    "rock'n'roll 'tis 's",
    "''s '' `quoted`",
    "1,234.5 + 10% = 2^10",
    "3D 4k mp3 H2O 1990s",
    "½ ² Ⅷ ٣٤",
    "tom &amp; jerry",
    "&amp;amp; &lt;b&gt;bold&lt;/b&gt; caf&eacute; &#128049;",
    "a  b\u00a0c\u3000d\u2003e\nf\r\ng\x1fh",
    "schÃ¶n â€œquotedâ€\x9d donâ€™t",
    "“curly” ‘single’ — dash… ﬁne ﬂow",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "İstanbul ISPARTA ıI",
    "ΟΔΟΣ ὈΔΥΣΣΕΎΣ ς",
    "ＦＵＬＬ ｗｉｄｔｈ",
    "STRASSE straße ẞ",
    "Ǆ ǅ ǆ",
    "zero\u200bwidth\u200djoin \ufeffbom",
    "http://example.org/a_b-c?d=e&f=g#h",
    "#hash_tag @user snake_case camelCase",
    "C++ && C# || (a[b]{c})",
    "!!!??? ... ---",
    "~`|\\^*",
    "👩🏽‍💻👨‍👩‍👧‍👦🏳️‍🌈",
    "👍🏿x👍🏻",
    "1️⃣2️⃣",
    "🇩🇪🇯🇵",
    "日本語のテキスト 漢字",
    "한국어 텍스트",
    "עברית טקסט",
    "नमस्ते दुनिया",
    "ภาษาไทย",
    "Việt Nam",
    "<|endoftext|",
    "< start > <end>",
    "mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm",
    "a photo of " * 40,
    "\u0130\u0307 \u1e9e",
    "\U0001f9ff\ue000",
]
PATTERNS = [
    "{}", "a photo of {}.", "{} and {}", "{}, {} & {}", "{}'s {}", "THE {}", "“{}” – {}!", "{} x{}", "2 {}s; 31 {}",
    "{}\t{}\n{}", "#{} ({})", "{}-{}", "who's {}? it isn't {}", "{}&nbsp;{}", "{}{}", "... {} / {}",
]  # fmt: skip


def captions() -> list[str]:
    rng = random.Random(0)
    english = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
    others = json.loads(gzip.decompress((ASSETS / "emoji_languages.json.gz").read_bytes()))
    words = {"en": [word for concept in english for word in (concept["name"], *concept["keywords"])]}
    words |= {code: [w for concept in concepts for w in (concept["name"], *concept["keywords"])]
              for code, concepts in others.items()}  # fmt: skip
    words["emoji"] = ["".join(chr(int(part, 16)) for part in concept["code"].split("-")) for concept in english]
    made = list(HARD)
    while len(made) < 1000:
        pattern = rng.choice(PATTERNS)
        languages = rng.choices([*words, "en", "en"], k=pattern.count("{}"))
        caption = pattern.format(*(rng.choice(words[language]) for language in languages))
        made.append(rng.choice([caption, caption, caption.upper(), caption.title()]))
    return made


def main() -> None:
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[: MERGES + 1]
    merges = HERE / "clip_merges.txt.gz"
    merges.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    original = SimpleTokenizer(str(merges))
    vocab = {name.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): i
             for name, i in original.encoder.items()}  # fmt: skip
    hf = CLIPTokenizer(vocab=vocab, merges=[tuple(line.split()) for line in lines[1:]])
    texts = captions()
    ids = {"openai": [original.encode(text) for text in texts],
           "hf": [hf(text, add_special_tokens=False)["input_ids"] for text in texts]}  # fmt: skip
    arrays = {"captions": json.dumps(texts), "cleaned": json.dumps([original.clean_fn(text) for text in texts])}
    for name, rows in ids.items():
        arrays[f"{name}_ids"] = np.concatenate([np.array(row, np.int32) for row in rows])
        arrays[f"{name}_counts"] = np.array([len(row) for row in rows], np.int32)
    arrays["openai_rows"] = original(texts[-50:], LENGTH).numpy().astype(np.int32)
    padded = hf(texts[-50:], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
    arrays["hf_rows"], arrays["hf_mask"] = (padded[k].astype(np.int32) for k in ("input_ids", "attention_mask"))
    for key in ("captions", "cleaned"):
        arrays[key] = np.frombuffer(arrays[key].encode(), np.uint8)
    np.savez_compressed(HERE / "tokenizer.npz", **arrays)
    same = sum(left == right for left, right in zip(ids["openai"], ids["hf"], strict=True))
    print(f"{len(texts)} captions, {len(set(texts))} different, the two originals agree on {same}")


if __name__ == "__main__":
    main()
