"""Makes chrf.json: sacrebleu's chrF of some texts; run as python tests/goldens/make_chrf.py (needs sacrebleu)."""

import json
import random
from pathlib import Path

import sacrebleu

WORDS = [
    "roter", "apfel", "grünes", "herz", "fliegende", "untertasse", "l’été", "niño", "東京", "タワー", "a", "ab", "abc",
    "abcd", "(in)", "1:30", "straße",
]  # fmt: skip


def cases() -> list[tuple[list[str], list[str]]]:
    """(translations, references): equal, empty, too short for some orders, and drawn at random."""
    rng = random.Random(0)
    some = [(["roter apfel"], ["roter apfel"]), ([""], ["herz"]), (["herz"], ["a"]), (["ab", "xyz"], ["abc", "xy"])]
    some += [(["a b c"], ["abc"]), (["zzz"], ["aaa"]), (["aaaaaaaaaa"], ["aaa"]), (["abcdefgh", ""], ["abcdefg", "b"])]
    for _ in range(8):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))) for _ in range(10)]
        some.append(
            ([" ".join(rng.sample(text.split(), len(text.split())))[: rng.randint(1, 30)] for text in texts], texts)
        )
    return some


if __name__ == "__main__":
    metric = sacrebleu.CHRF()
    lines = [[*case, metric.corpus_score(case[0], [case[1]]).score] for case in cases()]
    Path(__file__).with_name("chrf.json").write_text(json.dumps(lines, ensure_ascii=False, indent=1) + "\n")
