"""GGUF files of random LLaMAs against the model that they were written from, and the real SmolLM2 where it is given."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the [gguf] extra")

import gguf_files  # noqa: E402, needs gguf
from gguf_files import KINDS  # noqa: E402

from mmjax import weights  # noqa: E402
from mmjax.models import llama  # noqa: E402
from mmjax.ops import rope  # noqa: E402

IDS = np.array([[3, 17, 0, 39, 5, 5, 21], [8, 1, 2, 30, 11, 12, 13]], np.int32)
BRANCHES = {
    "tied": {"tied": True},
    "own head": {"tied": False},
    "no sharing of keys": {"tied": True, "num_kv_heads": 4},
}


def original(**changes):
    c = gguf_files.sizes(**changes)
    return llama.Llama(c), {"params": gguf_files.random_parameters(c, 0.08)}


def written(folder: Path, model, variables, kind=KINDS.F32, **options) -> Path:
    path = folder / "model.gguf"
    gguf_files.write(path, model.config, gguf_files.tensors(model.config, variables["params"]), kind, **options)
    return path


@pytest.fixture
def model_and_file(tmp_path):
    model, variables = original(tied=True)
    return model, variables, written(tmp_path, model, variables)


def apply(model, variables, ids=IDS):
    return jax.jit(model.apply)(variables, ids).logits


@pytest.mark.parametrize("branch", BRANCHES)
def test_float_files_give_the_model_that_they_were_written_from(tmp_path, branch):
    model, variables = original(**BRANCHES[branch])
    loaded, ours = weights.load_gguf(written(tmp_path, model, variables))
    c = dataclass_without(loaded.config, "epsilon")
    assert c == dataclass_without(model.config, "epsilon")  # which the file holds in float32
    jax.tree.map(np.testing.assert_array_equal, ours, variables)
    np.testing.assert_allclose(apply(loaded, ours), apply(model, variables), rtol=1e-6, atol=1e-6)


def dataclass_without(config, field):
    return {name: value for name, value in vars(config).items() if name != field}


STEPS = {  # the largest rounding error of a value in a block whose values reach from a to b, |.| at most m
    KINDS.F16: lambda a, b, m: m * 2**-11,
    KINDS.BF16: lambda a, b, m: m * 2**-8,
    KINDS.Q8_0: lambda a, b, m: m / 127 / 2 + m * 2**-10,
    KINDS.Q5_1: lambda a, b, m: (b - a) / 31 / 2 + m * 2**-9,
    KINDS.Q5_0: lambda a, b, m: m / 16 + m * 2**-9,  # 32 steps from -m to m: the far end is clipped by a whole one
    KINDS.Q4_1: lambda a, b, m: (b - a) / 15 / 2 + m * 2**-9,
    KINDS.Q4_0: lambda a, b, m: m / 8 + m * 2**-9,
}


@pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.name)
def test_quantised_files_are_off_by_half_a_step(tmp_path, kind):
    model, variables = original(tied=False)
    loaded, ours = weights.load_gguf(written(tmp_path, model, variables, kind))
    largest = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]["layers"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        theirs, found = leaf, at(ours["params"]["layers"], name)
        if "norm" in name:
            np.testing.assert_array_equal(found, theirs)
            continue
        # Blocks of 32 run along the input axis of (in, out).
        blocks = np.moveaxis(theirs, 1, -1).reshape(-1, 32)
        errors = np.abs(np.moveaxis(np.asarray(found), 1, -1).reshape(-1, 32) - blocks)
        low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
        bound = STEPS[kind](low, high, np.abs(blocks).max(1, keepdims=True))
        assert (errors <= bound).all(), name
        largest = max(largest, float((errors / bound).max()))
    assert largest > 0.3  # the bound is no wider than it must be
    error = np.abs(apply(loaded, ours) - apply(model, variables)).max() / np.abs(apply(model, variables)).max()
    print(f"{kind.name}: relative error of logits {error:.1e}")
    # What two layers make of it: as a guide, the relative error of a weight times three.
    assert 1e-5 < error < {KINDS.F16: 3e-3, KINDS.BF16: 2e-2, KINDS.Q8_0: 5e-2}.get(kind, 0.6)


def at(tree, name):
    for part in name.split("/"):
        tree = tree[part]
    return tree


def by_hand(raw: np.ndarray, kind) -> np.ndarray:
    """One block as ggml's documentation has it: byte j holds element j in its low half and j + 16 in its high half."""
    half = lambda start: float(raw[start : start + 2].view(np.float16)[0])  # noqa: E731
    if kind == KINDS.Q8_0:
        return half(0) * raw[2:34].view(np.int8).astype(np.float64)
    packed = raw[2:18] if kind == KINDS.Q4_0 else raw[4:20]
    values = np.array([packed[j % 16] % 16 if j < 16 else packed[j % 16] // 16 for j in range(32)], np.float64)
    return half(0) * (values - 8) if kind == KINDS.Q4_0 else half(0) * values + half(2)


@pytest.mark.parametrize("kind", [KINDS.Q4_0, KINDS.Q4_1, KINDS.Q8_0], ids=lambda kind: kind.name)
def test_blocks_are_read_as_documented(kind):
    from mmjax.weights.gguf_file import Tensor

    count = gguf.GGML_QUANT_SIZES[kind][1]
    raw = np.random.default_rng(1).integers(0, 256, (3, count), np.uint8)
    for start in (0, 2) if kind == KINDS.Q4_1 else (0,):
        raw[:, start : start + 2] = np.array([[0.01], [-0.5], [6e-8]], np.float16).view(np.uint8)  # the last subnormal
    tensor = Tensor(raw, kind, (3, 32))
    np.testing.assert_allclose(tensor[1:], [by_hand(row, kind) for row in raw[1:]], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(tensor[:], [by_hand(row, kind) for row in raw], rtol=1e-6, atol=1e-12)


def test_every_format_that_the_package_reads_is_taken(tmp_path):
    """Blocks of zeros: what is tested is that a file of this type passes the door."""
    model, variables = original(width=256, num_heads=4, head_dim=64, hidden=256, tied=True)
    arrays = gguf_files.tensors(model.config, variables["params"])
    for kind in (KINDS.Q4_K, KINDS.Q5_K, KINDS.Q6_K, KINDS.Q2_K, KINDS.Q3_K, KINDS.IQ4_XS):
        block, size = gguf.GGML_QUANT_SIZES[kind]

        def add(writer, kind=kind, block=block, size=size):
            for name, x in arrays.items():
                if x.ndim == 2:
                    writer.add_tensor(
                        name, np.zeros((x.shape[0], x.shape[1] // block * size), np.uint8), raw_dtype=kind
                    )

        path = tmp_path / f"{kind.name}.gguf"
        vectors = {name: x for name, x in arrays.items() if x.ndim == 1}
        gguf_files.write(path, model.config, vectors, change=add)
        ours = weights.load_gguf(path)[1]["params"]
        assert not ours["layers"]["mlp"]["up"]["kernel"].any()


def test_factors_of_the_frequencies_are_taken_from_the_file(tmp_path):
    scaling = rope.Llama3(factor=8.0, length=64)
    model, variables = original(scaling=scaling, tied=True)
    plain = rope.frequencies(model.config.head_dim, model.config.theta)
    factors = plain / rope.frequencies(model.config.head_dim, model.config.theta, scaling)
    assert factors.max() > 7
    assert factors.min() == 1
    arrays = gguf_files.tensors(model.config, variables["params"]) | {"rope_freqs.weight": factors.astype(np.float32)}
    gguf_files.write(tmp_path / "a.gguf", model.config, arrays)
    loaded, ours = weights.load_gguf(tmp_path / "a.gguf")
    np.testing.assert_allclose(apply(loaded, ours), apply(model, variables), rtol=1e-5, atol=1e-5)


def test_linear_scaling_is_taken_from_the_file(tmp_path):
    def change(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    model, variables = original(tied=True)
    assert weights.load_gguf(written(tmp_path, model, variables, change=change))[0].config.scaling == rope.Linear(4.0)


def test_dtype_and_shardings_are_as_in_load_hf(model_and_file):
    model, variables, path = model_and_file
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def shardings(tree):
        return jax.tree_util.tree_map_with_path(lambda path, x: rows if path[1].key == "embed" else split, tree)

    ours = weights.load_gguf(path, dtype=jnp.bfloat16, shardings=shardings)[1]["params"]
    assert ours["embed"]["embedding"].sharding == rows
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.bfloat16)}
    expected = variables["params"]["embed"]["embedding"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(ours["embed"]["embedding"]), expected)


def test_another_architecture_is_refused(tmp_path):
    model, variables = original(tied=True)
    path = written(tmp_path, model, variables, architecture="qwen2")
    with pytest.raises(
        ValueError, match=r"model\.gguf holds a model of the architecture 'qwen2', supported is 'llama'"
    ):
        weights.load_gguf(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_expert_count(8), "mixture of experts"),
        (lambda w: w.add_uint16("split.count", 3), "one of 3 parts; join them"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope.scaling.type is 'yarn', supported are"),
        (lambda w: w.add_vocab_size(41), "embeddings are for 40 tokens, its vocab_size says 41"),
        (lambda w: w.add_token_list(["a", "b"]), "embeddings are for 40 tokens, its token list says 2"),
        (lambda w: w.add_value_length(8), "attention.value_length is 8, supported is the width of a head, 16"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path, change, message):
    model, variables = original(tied=True)
    with pytest.raises(ValueError, match=message):
        weights.load_gguf(written(tmp_path, model, variables, change=change))


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    model, variables = original(tied=True)
    arrays = gguf_files.tensors(model.config, variables["params"])
    arrays["blk.1.attn_q_norm.weight"] = arrays.pop("blk.1.ffn_up.weight")
    gguf_files.write(tmp_path / "a.gguf", model.config, arrays)
    with pytest.raises(ValueError, match=r"missing blk\.1\.ffn_up\.weight.*unknown blk\.1\.attn_q_norm\.weight"):
        weights.load_gguf(tmp_path / "a.gguf")


def test_a_type_that_the_package_cannot_read_is_named(tmp_path):
    model, variables = original(tied=True)
    arrays = gguf_files.tensors(model.config, variables["params"])

    def change(writer):
        block, size = gguf.GGML_QUANT_SIZES[KINDS.Q8_1]
        x = arrays.pop("blk.0.attn_q.weight")
        raw = np.zeros((x.shape[0], x.shape[1] // block * size), np.uint8)
        writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=KINDS.Q8_1)

    gguf_files.write(tmp_path / "a.gguf", model.config, arrays, change=change)
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight is stored as type Q8_1, which this gguf package"):
        weights.load_gguf(tmp_path / "a.gguf")


def test_a_file_cut_anywhere_is_refused(model_and_file, tmp_path):
    whole = model_and_file[2].read_bytes()
    cut = tmp_path / "cut.gguf"
    lengths = [4, 8, 23, 24, 40, *np.linspace(50, len(whole) - 40, 40).astype(int)]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf is cut short"):
            weights.load_gguf(cut)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 zip", b"GGU"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.gguf is no GGUF file"):
        weights.load_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize(("version", "found"), [(1, "version 1"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(model_and_file, tmp_path, version, found):
    whole = model_and_file[2].read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:4] + version.to_bytes(4, "little") + whole[8:])
    with pytest.raises(ValueError, match=f"is a GGUF in {found}, supported are versions 2 and 3"):
        weights.load_gguf(tmp_path / "a.gguf")


def test_no_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(FileNotFoundError, match="a GGUF is one local file"):
            weights.load_gguf(path)


def test_without_the_package_it_says_what_to_install(model_and_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'mmjax\[gguf\]'"):
        weights.load_gguf(model_and_file[2])


def test_its_language_comes_along(tmp_path):
    model, variables = original(tied=True, vocab_size=262)
    path = written(tmp_path, model, variables, change=gguf_files.add_vocabulary)
    language = weights.load_language(path)
    ids = language.prompt("Hello")
    assert language.core.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert language.stop_ids == (261,)
    assert language.core.get_vocab_size() == weights.load_gguf(path)[0].config.vocab_size


def test_a_file_is_converted_to_a_folder_of_what_it_stands_for(tmp_path):
    model, variables = original(tied=True)
    path = written(tmp_path, model, variables)
    weights.convert(path, tmp_path / "folder")
    again, loaded = weights.load_hf(tmp_path / "folder")
    assert again.config.width == model.config.width
    jax.tree.map(np.testing.assert_array_equal, loaded, weights.load_gguf(path)[1])


SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is Rome. The capital of Germany is Berlin."
)  # fmt: skip
GOLDEN_IDS = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282]
GOLDEN_IDS += [7158, 314, 7268, 30, 378, 3575, 282, 4521, 314, 11452, 30]


@pytest.mark.slow
def test_the_real_smollm2_computes_what_a_numpy_reader_of_its_file_did(smollm2):
    """Golden numbers of an account in plain NumPy, made from the same file by someone who had not seen this code."""
    model, variables = weights.load_gguf(smollm2)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 134_515_008
    language = weights.load_language(smollm2)
    assert language.core.encode(SENTENCES).ids == GOLDEN_IDS
    logits = np.asarray(apply(model, variables, np.array([GOLDEN_IDS], np.int32)))[0]
    chances = jax.nn.log_softmax(logits)
    nll = -chances[np.arange(21), GOLDEN_IDS[1:]].mean()
    assert nll == pytest.approx(1.4870, abs=1e-4)
    assert language.core.decode([int(logits[19].argmax())]) == " Berlin"
    assert language.core.decode([int(logits[21].argmax())]) == "\n"
    np.testing.assert_allclose(logits[-1, :3], [4.80175, 6.17092, 14.67875], atol=2e-4)
    assert np.abs(logits).max() == pytest.approx(29.8516, abs=1e-3)
