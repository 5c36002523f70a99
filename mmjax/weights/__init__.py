"""Checkpoints of other libraries, in and out: load_hf, save_hf, load_openai, save_openai, convert."""

from mmjax.weights.hf import convert, load_hf, save_hf
from mmjax.weights.open_clip import load_openai, save_openai

__all__ = ["convert", "load_hf", "load_openai", "save_hf", "save_openai"]
