"""Checkpoints of other libraries, in and out: load_hf and its like, save_hf and its like, and convert."""

from mmjax.weights.features import load_mof, save_mof
from mmjax.weights.gguf import load_gguf, load_language
from mmjax.weights.hf import convert, load_hf, save_hf
from mmjax.weights.mar import load_mar
from mmjax.weights.open_clip import load_openai, save_openai
from mmjax.weights.sam import load_sam
from mmjax.weights.seed import load_seed
from mmjax.weights.var import load_var, load_var_tokenizer

__all__ = [
    "convert",
    "load_gguf",
    "load_hf",
    "load_language",
    "load_mar",
    "load_mof",
    "load_openai",
    "load_sam",
    "load_var",
    "load_var_tokenizer",
    "load_seed",
    "save_hf",
    "save_mof",
    "save_openai",
]
