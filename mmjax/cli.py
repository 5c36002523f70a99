"""The `mmjax` command: what can be typed, and what a mistake answers.

Parsing only; the commands themselves are in `commands.py`, imported when one runs, so that `mmjax --help` is quick.
"""

import argparse
import dis
import importlib
import logging
import os
import sys
import textwrap
import traceback
from pathlib import Path

MISTAKE = 2  # exit code for what the user can mend; 1 is a fault of ours
DEBUG = "MMJAX_DEBUG"  # set to anything: tracebacks also for mistakes, and what was chosen automatically


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="mmjax",
        description="Train, measure, look at, plan and convert the systems of the multimodal story.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_examples(
            """
            mmjax list                                          what can be trained
            mmjax train experiments/clip_emoji.py               train CLIP on the emoji pack, write a report
            mmjax sample runs/clip_emoji-small "a red heart"    the pictures nearest to a text
            mmjax COMMAND --help                                more on one command
            """
        ),
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_train, _eval, _sample, _align, _plan, _convert, _list):
        add(commands)
    return root


def _examples(text: str) -> str:
    return "examples:\n" + textwrap.indent(textwrap.dedent(text).strip(), "  ")


def _command(commands, name: str, summary: str, examples: str, details: str = "") -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{textwrap.dedent(details).strip()}".strip(),
        epilog=_examples(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_experiment(command: argparse.ArgumentParser, size: str) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help="an experiment, such as experiments/clip_emoji.py")
    command.add_argument(
        "--size", default=size, help="which variant: tiny (seconds), small (minutes), paper (default: %(default)s)"
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides",
        help="change a field of the experiment, such as optimizer.peak=1e-3; may be repeated",
    )  # fmt: skip


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "several processes",
        "Under Slurm and on TPU slices the environment says all this: give the same command everywhere.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 (or MMJAX_COORDINATOR)")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many run (or MMJAX_NUM_PROCESSES)")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0 (or MMJAX_PROCESS_ID)")
    group.add_argument(
        "--start-timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to wait for late ones (default: 300)",
    )
    group.add_argument(
        "--heartbeat", type=int, default=60, metavar="SECONDS", help="after how long a silent one is dead (default: 60)"
    )


def _train(commands) -> None:
    command = _command(
        commands, "train", "train an experiment, evaluate it, and write its report",
        """
        mmjax train experiments/clip_emoji.py
        mmjax train experiments/clip_emoji.py --size tiny --workdir runs/try
        mmjax train experiments/clip_emoji.py --set optimizer.peak=5e-4 --set batch_size=256
        mmjax train experiments/clip_emoji.py --resume
        mmjax train FILE --coordinator 127.0.0.1:8476 --num-processes 2 --process-id 0 &
        mmjax train FILE --coordinator 127.0.0.1:8476 --num-processes 2 --process-id 1
        """,
        details="""
            The run folder holds config.json, a copy of FILE, metrics.jsonl, checkpoints/ and report.html. SIGTERM and
            Ctrl-C save a checkpoint first; --resume goes on from the newest whole one.
        """,
    )  # fmt: skip
    _add_experiment(command, "small")
    command.add_argument("--workdir", type=Path, help="run folder (default: runs/<file's name>-<size>)")
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    command.add_argument("--record", action="store_true", help="append the final numbers to experiments/results.jsonl")
    command.add_argument("--wandb", action="store_true", help="also log to Weights & Biases (extra mmjax[wandb])")
    command.add_argument(
        "--no-verify", action="store_false", dest="verify", help="trust checkpoints without comparing their checksums"
    )
    _add_processes(command)


def _eval(commands) -> None:
    command = _command(
        commands, "eval", "evaluate a run's newest checkpoint and print every number",
        "mmjax eval runs/clip_emoji-small",
    )  # fmt: skip
    command.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/clip_emoji-small")


def _sample(commands) -> None:
    command = _command(
        commands, "sample", "ask a trained run, a language model or a CLIP for an answer",
        """
        mmjax sample runs/clip_emoji-small "a red heart" "a cat with a smile"
        mmjax sample runs/clip_emoji-small --image photo.png "a cat" "a dog"
        mmjax sample --weights SmolLM2-135M-Instruct.Q4_1.gguf "What is the capital of France?"
        mmjax sample --weights ~/gpt2 "The meaning of life is" --temperature 0.8 --top-p 0.95
        mmjax sample --weights ~/clip-vit-base-patch32 --image photo.jpg "a photo of a cat" "a photo of a dog"
        """,
        details="""
            With a RUN and texts: the pictures nearest to each text, written to RUN/samples/. With an image and texts:
            how probable each text is for the image, the texts being the only choices. With the weights of a language
            model: its answer to each text, or how a model without a chat template goes on with it.
        """,
    )  # fmt: skip
    command.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="instead of a run: a folder with config.json and *.safetensors, or a GGUF file of the LLaMA family",
    )
    command.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="a picture to describe; may be repeated"
    )
    command.add_argument(
        "words", nargs="*", metavar="RUN TEXT", help="run folder (without --weights), then texts in quotes"
    )
    group = command.add_argument_group("weights of a language model")
    group.add_argument("--system", metavar="TEXT", help="what a chat model is told first (default: what its file says)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="(default: 256, or what the context leaves)")
    group.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens (default: all)")
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the likeliest that together reach P (default: all)"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens P times as likely as the first (default: all)",
    )
    group.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="of tokens already there (default: 1, none)"
    )
    group.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")


def _align(commands) -> None:
    command = _command(
        commands, "align", "measure how alike two representations are, and what chance would give",
        """
        mmjax align mmjax/data/assets/stamps.npz:image mmjax/data/assets/stamps.npz:text
        mmjax align mine.npz:features dinov2.npy --k 20 --metrics mutual_knn,unbiased_cka
        mmjax align runs/clip_emoji-small:image runs/clip_emoji-small:text --data emoji:twemoji
        mmjax align ~/clip-vit-base-patch32:image ~/all-MiniLM-L6-v2 --data my_pictures --intervals 100
        """,
        details="""
            A and B are features of the same things, row by row: FILE.npz:KEY, FILE.npy or platonic-rep's FILE.pt with
            arrays [N D] or [N L D] (keys K/0, K/1, ... are the layers of K), or encoders that read --data: a run
            folder, a Hugging Face folder (with :image or :text where a model reads both) or FILE.gguf. Pictures are
            resized by the shorter side and the middle is cut out, as for CLIP, where SigLIP and ViT squeeze and DINOv2
            cuts 224 of 256: for these, give features made elsewhere if pictures are not square.

            Each metric is measured between all pairs of layers; `score` is the best pair, `last` the last layers.
            `null` is the mean of the best pair's score when the rows of B are permuted, `null 95%` what chance exceeds
            once in twenty. p counts permutations that reach the score; `calibrated` is 0 at `null 95%` and 1 at the
            largest score. Compare calibrated scores, and only for the same N and k: raw scores grow with width, depth
            and k / N.
        """,
    )  # fmt: skip
    command.add_argument("a", metavar="A", help="one side")
    command.add_argument("b", metavar="B", help="the other side")
    command.add_argument(
        "--data", metavar="DATA",
        help="what encoders read: a folder with pictures and captions.jsonl, or emoji:SPLIT of the embedded pack",
    )  # fmt: skip
    command.add_argument("--metrics", default="", metavar="NAMES", help="with commas between them (default: all)")
    command.add_argument("--k", type=int, default=10, help="neighbours of a row (default: %(default)s)")
    command.add_argument(
        "--layers", choices=("all", "last"), default="all", help="which of the features' layers (default: all)"
    )
    command.add_argument(
        "--clamp", type=float, default=0.95, metavar="SHARE",
        help="of the features' values that stay as they are; larger ones are cut (default: %(default)s, 1 = none cut)",
    )  # fmt: skip
    command.add_argument("--permutations", type=int, default=200, metavar="K", help="of the null (default: 200)")
    command.add_argument(
        "--intervals", type=int, default=0, metavar="DRAWS",
        help="also a 95%% interval of each score, from so many halves of the rows (default: 0, none)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of permutations and draws (default: %(default)s)")
    command.add_argument(
        "--official", action="store_true",
        help="what measure_alignment.py of minyoungg/platonic-rep gives for --modality_x A --modality_y B, quirks "
        "included, but float32 products for TF32's, no noise in svcca, of equal neighbours the lower row; layers are "
        "printed as A's, B's",
    )  # fmt: skip


def _plan(commands) -> None:
    command = _command(
        commands, "plan", "compile an experiment's step for a machine that is not here: does it fit",
        """
        mmjax plan experiments/clip_emoji.py --topology v5e:16x16
        mmjax plan experiments/clip_emoji.py --topology v5p:4x4x4 --set batch_size=65536 --set mesh.fsdp=8
        mmjax plan experiments/clip_emoji.py --size small --topology h100:8
        """,
        details="""
            It compiles the step that `train` would run, for every chip of the topology, and prints memory, collectives
            and FLOPs of one. TPUs need the extra mmjax[plan], H100 needs mmjax[cuda]; no accelerator is needed.
            The exit code is 0 if the step fits and 1 if not.
        """,
    )  # fmt: skip
    _add_experiment(command, "paper")
    command.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="v5e:16x16, v6e:4x4, v5p:4x4x4 (chips), h100:8 (cards)"
    )
    command.add_argument("--record", action="store_true", help="append what fits to experiments/plans.jsonl")


def _convert(commands) -> None:
    command = _command(
        commands,
        "convert",
        "rewrite a checkpoint in another library's format, bit for bit",
        "mmjax convert ViT-B-32.pt clip-vit-b32/\nmmjax convert clip-vit-b32/ open_clip/ --to open_clip",
    )  # fmt: skip
    command.add_argument("source", type=Path, metavar="SRC", help="folder or file of weights")
    command.add_argument("target", type=Path, metavar="DST", help="folder to write")
    command.add_argument(
        "--to", default="transformers", help="whose format: transformers or open_clip (default: %(default)s)"
    )


def _list(commands) -> None:
    command = _command(
        commands, "list", "list experiments with their sizes", "mmjax list\nmmjax list my_experiments/"
    )  # fmt: skip
    command.add_argument(
        "folder", type=Path, nargs="?", default=Path("experiments"), metavar="FOLDER", help="(default: %(default)s)"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """In `sample RUN --image FILE TEXT`, argparse takes only RUN as words: texts after an option come back as extra."""
    root = parser()
    asked, extra = root.parse_known_args(argv)
    if asked.command == "sample" and not any(word.startswith("-") for word in extra):
        asked.words += extra
    elif extra:
        root.error(f"unrecognized arguments: {' '.join(extra)}")
    return asked


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 a fault of ours or a plan that does not fit, 2 a mistake."""
    asked = parse(argv)
    if os.environ.get(DEBUG):
        logging.basicConfig()
        logging.getLogger("mmjax").setLevel(logging.DEBUG)
    run = getattr(importlib.import_module("mmjax.commands"), asked.command)
    try:
        return run(asked)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """One sentence for a mistake, everything for a fault; ends the process at once where others wait for it."""
    if _is_mistake(error) and not os.environ.get(DEBUG):
        print(f"mmjax: error: {_sentence(error)}", file=sys.stderr)
        code = MISTAKE
    else:
        traceback.print_exception(error)
        code = MISTAKE if _is_mistake(error) else 1
    if "jax" in sys.modules:
        from mmjax.parallel import distributed

        distributed.leave(code)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _is_mistake(error: Exception) -> bool:
    """Whether the user can mend it: a file or a peer is missing, or our own code says `raise ValueError`.

    A ValueError that NumPy, JAX or a builtin raised is a fault of ours, and its traceback is wanted.
    """
    if isinstance(error, OSError):
        return True
    at = error.__traceback__
    while at.tb_next is not None:
        at = at.tb_next
    code, package = at.tb_frame.f_code, at.tb_frame.f_globals.get("__name__", "").split(".")[0]
    said = code.co_code[at.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return isinstance(error, ValueError) and said and package in ("mmjax", "experiments")
