"""A chapter of the story in one command: `python -m experiments._chapters CHAPTER [--jobs N] [OPTIONS]`.

    bert         bert_cldr -> bert_names (and the same from nothing), bert_tags
    transformer  transformer_names
    chat         llama_text -> llama_sft -> llama_reward -> llama_ppo, and llama_sft -> llama_dpo, llama_grpo
    mamba        mamba_induction and mamba_copying, each beside a Transformer
    text         gpt_text, mamba2_text and llama_text over as many steps
    lengths      llama_lengths
    language     all of the above
    ladder       ladder_images and ladder_captions in all their sizes, then the study _ladder
    vision       clip_emoji, siglip_emoji, dino_emoji, dinov2_emoji, the studies _encoders and _eyes_wide_shut; ladder
    scenes       vit_scenes, llama_scenes, then what starts from them: llava_scenes in its sizes, of which small_long
                 leads to shikra_scenes, ferret_scenes and nextchat_scenes; qformer_scenes -> blip2_scenes; sam_scenes;
                 eyes of llava_scenes come from clip_emoji and dinov2_emoji
    scenes_200   vit_scenes, llama_scenes, llava_scenes and what starts from it, with 200 concepts
    scenes_long  longer runs of shikra_scenes and nextchat_scenes, after the chapter scenes
    pictures     the codecs kl_emoji, vqgan_emoji, var_tokenizer_emoji, then what draws through them and frequencies:
                 autoregressive_emoji in all its ways, var_emoji, mar_emoji, frequency_emoji; some with three seeds
    seed         dinov2_emoji, clip_emoji, kl_emoji, then SEED: seed_emoji in its two stages, seed_decoder_emoji and
                 seed_words_emoji
    names        longer runs that draw pairs of name and artist that were never seen, after the codecs of pictures
    minilm       bert_names and bert_tags from the weights in weights/minilm (see bert_names)

OPTIONS go to each `mmjax train` and each study, such as --record. What was interrupted goes on when this is run again.
--jobs N runs up to N at a time, each on its share of the cores: small models use one core well and two badly. What they
print goes to runs/NAME.log, and a run waits for those that it starts from.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmjax.train import overrides

FROM_NOTHING = ("--workdir", "runs/bert_names-scratch", "--set", "init_from=()")
CHAPTERS = {
    "bert": (("bert_cldr",), ("bert_names",), ("bert_names", *FROM_NOTHING), ("bert_tags",)),
    "transformer": (("transformer_names",),),
    "chat": (("llama_text",), ("llama_sft",), ("llama_reward",), ("llama_ppo",), ("llama_dpo",), ("llama_grpo",)),
    "mamba": (
        ("mamba_induction",),
        ("mamba_induction", "--size", "small_transformer"),
        ("mamba_copying",),
        ("mamba_copying", "--size", "small_transformer"),
    ),
    "text": (("gpt_text",), ("mamba2_text",), ("llama_text", "--workdir", "runs/llama_text-400", "--set", "steps=400")),
    "lengths": (("llama_lengths",),),
}
CHAPTERS["language"] = tuple(run for runs in CHAPTERS.values() for run in runs)
LADDER = ("small_xs", "small_s", "small", "small_l", "small_16th", "small_quarter")
CHAPTERS["ladder"] = (
    *(("ladder_captions", "--size", size) for size in LADDER),
    *(("ladder_images", "--size", size) for size in (*LADDER, "small_1task", "small_3tasks")),
    ("_ladder",),
)
ENCODERS = ("clip_emoji", "siglip_emoji", "dino_emoji", "dinov2_emoji", "_encoders", "_eyes_wide_shut")
CHAPTERS["vision"] = (*((stem,) for stem in ENCODERS), *CHAPTERS["ladder"])
ADAPTERS = ("small", "small_linear", "small_qformer")
STAGES = ("small_align", "small_instruct")
MIXED = ("small_clip", "small_dino", "small_additive", "small_interleaved", "small_tuned")
CHAPTERS["scenes"] = (
    *((stem,) for stem in ("clip_emoji", "dinov2_emoji", "vit_scenes", "llama_scenes")),
    ("llava_scenes", "--size", "small_long"),
    *((stem,) for stem in ("sam_scenes", "shikra_scenes", "nextchat_scenes", "ferret_scenes")),
    *((stem,) for stem in ("qformer_scenes", "blip2_scenes")),
    *(("llava_scenes", "--size", size) for size in (*ADAPTERS, *STAGES, *MIXED)),
    ("ferret_scenes", "--size", "small_plain"),
    ("nextchat_scenes", "--size", "small_masks"),
    ("llama_scenes", "--size", "small_twin"),
)
GROUNDED = ("shikra_scenes", "ferret_scenes", "nextchat_scenes")
CHAPTERS["scenes_200"] = tuple(
    (stem, "--size", "small_200") for stem in ("vit_scenes", "llama_scenes", "llava_scenes", *GROUNDED)
)
CHAPTERS["scenes_long"] = tuple((stem, "--size", "small_long") for stem in ("shikra_scenes", "nextchat_scenes"))
CODECS = (("kl_emoji",), ("vqgan_emoji",), ("var_tokenizer_emoji",))
ORDERS = ("small_random_causal", "small_raster_sets", "small_sets", "small_mar", "small_mar_raster")
WAYS = (*ORDERS, "small_mar_causal", "small_mar_raster_causal", "small_pixels")
FREQUENCIES = (
    "small_reversed",
    "small_shuffled",
    "small_values",
    "small_values_reversed",
    "small_cosines",
    "small_raster",
)


def again(stem: str, size: str, seed: int) -> tuple[str, ...]:
    """The same with other random numbers."""
    return (stem, "--size", size, "--workdir", f"runs/{stem}-{size}-seed{seed}", "--set", f"seed={seed}")


THRICE = (
    ("autoregressive_emoji", "small"),
    ("var_emoji", "small"),
    ("mar_emoji", "small"),
    ("frequency_emoji", "small"),
)
CHAPTERS["pictures"] = (
    *CODECS,
    *((stem,) for stem, _ in THRICE),
    *(("autoregressive_emoji", "--size", size) for size in WAYS),
    *(("frequency_emoji", "--size", size) for size in FREQUENCIES),
    *(again(stem, size, seed) for seed in (1, 2) for stem, size in THRICE),
)
CHAPTERS["seed"] = (
    ("dinov2_emoji",), ("clip_emoji",), ("kl_emoji",), ("seed_emoji", "--size", "small_align"), ("seed_emoji",),
    ("seed_decoder_emoji",), ("seed_words_emoji",),
)  # fmt: skip
CHAPTERS["names"] = (
    ("autoregressive_emoji", "--size", "names"), ("autoregressive_emoji", "--size", "names_mar"),
    ("var_emoji", "--size", "names"), ("frequency_emoji", "--size", "names"),
)  # fmt: skip
CHAPTERS["minilm"] = (("bert_names", "--size", "minilm"), ("bert_tags", "--size", "minilm"))


def words_of(run: Sequence[str]) -> list[str]:
    stem, *own = run
    what = [f"experiments.{stem}"] if stem.startswith("_") else ["mmjax", "train", f"experiments/{stem}.py", "--resume"]
    return ["-m", *what, *own]


def in_turn(runs: Sequence[Sequence[str]], options: Sequence[str]) -> int:
    for run in runs:
        words = [*words_of(run), *options]
        print("python", *words, flush=True)
        if code := subprocess.run([sys.executable, *words]).returncode:
            return code
    return 0


def told(run: Sequence[str], option: str, default: str = "") -> str:
    return dict(zip(run[1::2], run[2::2], strict=True)).get(option, default)


def name_of(run: Sequence[str]) -> str:
    """Its folder in runs/, by which others start from it."""
    return Path(told(run, "--workdir", f"{run[0]}-{told(run, '--size', 'small')}")).name


def sources_of(run: Sequence[str]) -> set[str]:
    """The names of the runs that it starts from."""
    size = told(run, "--size", "small")
    sets = [value for option, value in zip(run[1::2], run[2::2], strict=True) if option == "--set"]
    sources = overrides.load_experiment(f"experiments/{run[0]}.py", size, sets).init_from
    return {name for one in sources for name in (one.run, f"{one.run}-{size}")}


def needs_of(runs: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    """By name, the earlier runs that a run waits for: those that it starts from, or for a study all of them."""
    needs: dict[str, set[str]] = {}
    for run in runs:
        needs[name_of(run)] = set(needs) if run[0].startswith("_") else sources_of(run) & set(needs)
    return needs


def at_once(runs: Sequence[Sequence[str]], options: Sequence[str], jobs: int) -> int:
    """As `in_turn`, up to `jobs` at a time; after a failure nothing more is started."""
    needs, waiting = needs_of(runs), {name_of(run): run for run in runs}
    cores, running, done, code = sorted(os.sched_getaffinity(0)), {}, set(), 0
    while running or (waiting and not code):
        for share in range(jobs):
            ready = next((name for name in waiting if needs[name] <= done), None)
            if ready is not None and share not in running and not code:
                words = [*words_of(waiting.pop(ready)), *options]
                running[share] = ready, started(words, ready, cores[share::jobs] or cores)
        time.sleep(0.2)
        for share, (name, process) in list(running.items()):
            if process.poll() is not None:
                del running[share]
                done.add(name)
                print(f"{name}: exit {process.returncode}", flush=True)
                code = code or process.returncode
    return code


def started(words: Sequence[str], name: str, cores: Sequence[int]) -> subprocess.Popen:
    log = Path("runs") / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    print("python", *words, ">", log, flush=True)
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, *words], stdout=out, stderr=subprocess.STDOUT)
    os.sched_setaffinity(process.pid, cores)  # before it has imported anything that counts them
    return process


def main(chapter: str = "", *options: str) -> int:
    """The exit code of the first run that failed, 0 where all are done."""
    if chapter not in CHAPTERS:
        print(f"no chapter {chapter!r}; there are {', '.join(CHAPTERS)}", file=sys.stderr)
        return 2
    if options[:1] != ("--jobs",):
        return in_turn(CHAPTERS[chapter], options)
    if not (options[1:2] and options[1].isdigit() and int(options[1])):
        print("--jobs takes how many runs go at a time, such as --jobs 2", file=sys.stderr)
        return 2
    return at_once(CHAPTERS[chapter], options[2:], int(options[1]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
