"""Checkpoints of other libraries, in and out: load_hf, save_hf, load_openai, save_openai, load_gguf, convert."""

from mmjax.weights.gguf import load_gguf, load_language
from mmjax.weights.hf import convert, load_hf, save_hf
from mmjax.weights.open_clip import load_openai, save_openai

__all__ = ["convert", "load_gguf", "load_hf", "load_language", "load_openai", "save_hf", "save_openai"]
