"""The whole way from text to a chat model, step by step: `python -m experiments._llama_chain [small|tiny]`.

    llama_text -> llama_sft -> llama_reward -> llama_ppo
                           \\-> llama_dpo
                           \\-> llama_grpo

small takes about 36 minutes on 2 CPU cores, tiny a minute or two. Each step is `mmjax train experiments/STEP.py`; what
was interrupted goes on where it stopped when this is run again.
"""

import subprocess
import sys

STEPS = ("llama_text", "llama_sft", "llama_reward", "llama_ppo", "llama_dpo", "llama_grpo")


def main(size: str = "small", *options: str) -> int:
    """options: of `mmjax train`, such as --record."""
    for step in STEPS:
        command = [
            sys.executable,
            "-m",
            "mmjax",
            "train",
            f"experiments/{step}.py",
            "--size",
            size,
            "--resume",
            *options,
        ]
        print(" ".join(command[1:]), flush=True)
        if code := subprocess.run(command).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
