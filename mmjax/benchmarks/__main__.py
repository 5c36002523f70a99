"""python -m mmjax.benchmarks NAME: numbers for README tables; never run by tests for their timing."""

import importlib
import sys

BENCHMARKS = {  # name -> module and what it measures
    "clip": ("clip", "CLIP's train step against the same model in PyTorch, and the pipeline's share of it"),
    "dino": ("dino", "DINO's train step against facebookresearch/dino's own"),
    "ferret": ("ferret", "Ferret's sampler of regions against its authors' and against plain JAX, in time and memory"),
    "language": ("language", "train step and decoding of language models against transformers"),
    "llava": ("llava", "LLaVA's train step in both stages against transformers' class"),
    "mamba": ("mamba", "Mamba's forward pass against PyTorch; its time and memory against length, beside attention"),
    "qformer": ("qformer", "forward and backward of stage 1's Q-Former against transformers' class"),
    "platonic": ("platonic", "mutual k nearest neighbours in blocks against all N x N, in time and memory"),
    "contrastive": ("contrastive_memory", "memory of the contrastive losses on a 256-chip pod"),
    "cross_entropy": ("cross_entropy_memory", "memory of the cross entropy of next tokens, 32k and 128k ids"),
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in BENCHMARKS:
        print("usage: python -m mmjax.benchmarks NAME [options]\n", *usage(), sep="\n")
        return 0 if argv in (["-h"], ["--help"]) else 2
    sys.argv = [f"python -m mmjax.benchmarks {argv[0]}", *argv[1:]]
    importlib.import_module(f"mmjax.benchmarks.{BENCHMARKS[argv[0]][0]}").main()
    return 0


def usage() -> list[str]:
    return [f"  {name:12} {summary}" for name, (_, summary) in BENCHMARKS.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
