"""A chapter of the story in one command, run after run: `python -m experiments._chapters CHAPTER [OPTIONS]`.

    bert         bert_cldr -> bert_names (and the same from nothing), bert_tags
    transformer  transformer_names
    chat         llama_text -> llama_sft -> llama_reward -> llama_ppo, and llama_sft -> llama_dpo, llama_grpo
    mamba        mamba_induction and mamba_copying, each beside a Transformer
    text         gpt_text, mamba2_text and llama_text over as many steps
    lengths      llama_lengths
    language     all of the above
    ladder       ladder_images and ladder_captions in all their sizes, then the study _ladder
    vision       clip_emoji, siglip_emoji, dino_emoji, dinov2_emoji, the studies _encoders and _eyes_wide_shut; ladder
    scenes       vit_scenes, llama_scenes, then what starts from them: llava_scenes in all its sizes, shikra_scenes,
                 ferret_scenes, nextchat_scenes; sam_scenes; eyes of llava_scenes come from clip_emoji and dinov2_emoji
    minilm       bert_names and bert_tags from the weights in weights/minilm (see bert_names)

OPTIONS go to each `mmjax train` and each study, such as --record. What was interrupted goes on when this is run again.
"""

import subprocess
import sys

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
    *(("llava_scenes", "--size", size) for size in (*ADAPTERS, *STAGES, *MIXED)),
    *((stem,) for stem in ("shikra_scenes", "ferret_scenes", "nextchat_scenes", "sam_scenes")),
)
CHAPTERS["minilm"] = (("bert_names", "--size", "minilm"), ("bert_tags", "--size", "minilm"))


def main(chapter: str = "", *options: str) -> int:
    """The exit code of the first run that failed, 0 where all are done."""
    if chapter not in CHAPTERS:
        print(f"no chapter {chapter!r}; there are {', '.join(CHAPTERS)}", file=sys.stderr)
        return 2
    for stem, *own in CHAPTERS[chapter]:
        study = stem.startswith("_")
        what = [f"experiments.{stem}"] if study else ["mmjax", "train", f"experiments/{stem}.py", "--resume"]
        words = ["-m", *what, *own, *options]
        print("python", *words, flush=True)
        if code := subprocess.run([sys.executable, *words]).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
