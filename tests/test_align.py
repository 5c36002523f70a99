"""`mmjax align`: the table holds the metrics of features wherever they come from, and a mistake is one sentence."""

import json
import re
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mmjax import align, cli, weights
from mmjax.data import emoji
from mmjax.evals import layers, platonic, platonic_null
from mmjax.models import bert, clip
from mmjax.text import wordpiece

ROOT = Path(__file__).parents[1]
STAMPS = ROOT / "mmjax" / "data" / "assets" / "stamps.npz"
RNG = np.random.default_rng(0)
LATENT = RNG.normal(size=(30, 5))
X, Y = (np.float32(LATENT @ RNG.normal(size=(5, width)) + 0.5 * RNG.normal(size=(30, width))) for width in (8, 12))
QUICK = ("--k", "4", "--permutations", "20", "--metrics", "mutual_knn,cka")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with features x.npz (one array), many.npz (three layers of "deep", and "flat") and y.npy."""
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", features=X)
    np.save("y.npy", Y)
    deep = {f"deep/{i}": X[:, : 4 + i % 5] + i for i in (10, 2, 0)}
    np.savez("many.npz", flat=Y, name=np.array(["a"] * 30), **deep)
    return tmp_path


def said(arguments, capsys, code=0):
    capsys.readouterr()
    assert cli.main(["align", *arguments]) == code
    out, error = capsys.readouterr()
    return out if code == 0 else error


def rows_of(out):
    """metric -> the cells of its line."""
    lines = out.split("\n\n")[1].splitlines()
    return {line.split()[0]: re.split(r"  +", line)[1:] for line in lines[1:] if not line.startswith("note")}


def test_the_table_holds_scores_nulls_and_p_values(here, capsys):
    out = said(["x.npz", "y.npy", *QUICK, "--seed", "3"], capsys)
    assert "x  x.npz: 30 rows, 1 layer of width 8" in out
    rows = rows_of(out)
    assert list(rows) == ["mutual_knn@4", "cka"]
    x, y = platonic.prepare(X), platonic.prepare(Y)
    rng = jax.random.split(jax.random.key(3))[0]
    for metric, cells in zip((platonic.metrics(4)[0], platonic.metrics(4)[6]), rows.values(), strict=True):
        (wanted,) = platonic_null.measure([metric], x, y, platonic_null.orders(rng, 30, 20))
        numbers = (wanted.score, wanted.last, wanted.null.mean(), wanted.threshold, wanted.p, wanted.calibrated)
        assert cells[1] == "0, 0"
        np.testing.assert_allclose([float(cell) for cell in cells[:1] + cells[2:]], numbers, atol=6e-4)
    assert "note: k = 4 is 14% of 30 rows" in out


def test_a_clamp_of_one_and_intervals(here, capsys):
    out = said(["x.npz", "y.npy", *QUICK, "--clamp", "1", "--intervals", "20"], capsys)
    cells = rows_of(out)["cka"]
    wanted = float(platonic.cka(*(platonic.unit(z) for z in (X, Y))))
    assert float(cells[0]) == pytest.approx(wanted, abs=6e-4)
    low, high = map(float, cells[-1].split(" to "))
    assert low < wanted < high


def test_numbered_keys_are_layers_in_the_order_of_their_numbers(here):
    found = align.features_of("many.npz:deep", None)
    assert [one.shape[1] for one in found] == [4, 6, 4]
    np.testing.assert_array_equal(found[2], X[:, :4] + 10)
    np.testing.assert_array_equal(align.features_of("many.npz:deep/2", None), X[:, :6] + 2)
    np.testing.assert_array_equal(align.features_of("many.npz:flat", None), Y)


def test_layers_are_searched_or_the_last_is_taken(here, capsys):
    assert " 3 layers of widths 4 to 6" in (out := said(["many.npz:deep", "y.npy", *QUICK], capsys))
    assert "note: scores are the best of 3 pairs of layers" in out
    last = rows_of(said(["many.npz:deep", "y.npy", *QUICK, "--layers", "last"], capsys))
    assert last["cka"][0] == rows_of(out)["cka"][2]


def test_official_numbers(here, capsys):
    official = rows_of(said(["x.npz", "x.npz", *QUICK[:4], "--metrics", "lcs_knn,cka", "--official"], capsys))
    assert official["lcs_knn@4"][0] == "4.000"
    assert rows_of(said(["x.npz", "x.npz", *QUICK[:4], "--metrics", "lcs_knn"], capsys))["lcs_knn@4"][0] == "1.000"


def test_official_numbers_are_those_of_the_original_script(here, capsys):
    """It was asked for its search (x, y), which measure_alignment.py calls for y against x."""
    golden = np.load(ROOT / "tests" / "goldens" / "platonic.npz")
    np.save("gx.npy", golden["layers/x"])
    np.savez("gy.npz", **{f"y/{i}": golden[f"layers/y/{i}"] for i in range(2)})
    names = ("mutual_knn", "cycle_knn")
    options = ("--permutations", "5", "--metrics", ",".join(names), "--official")
    out = said(["gy.npz:y", "gx.npy", *options], capsys)
    assert "smallest values of a row, on average, stay" in out
    for name, cells in zip(names, rows_of(out).values(), strict=True):
        assert float(cells[0]) == pytest.approx(float(golden[f"layers/approximate/{name}"]), abs=6e-4), name
        assert cells[1] == "{1}, {0}".format(*golden[f"layers/approximate/{name}/pair"])


def test_features_of_the_original_are_read(here, monkeypatch):
    Path("dinov2.pt").touch()
    features = np.stack([X, X + 1], axis=1)
    monkeypatch.setattr(align.torch_file, "read", lambda path: {"feats": features, "num_params": np.array(3)})
    np.testing.assert_array_equal(align.features_of("dinov2.pt:feats", None), features)


def test_pictures_and_captions_that_are_real_align_far_above_chance(capsys):
    """626 stamps; the last layers alone and no clamp: 0.170, and 0.016 with shuffled captions."""
    sides = f"{STAMPS}:image", f"{STAMPS}:text"
    options = ("--layers", "last", "--clamp", "1", "--permutations", "99", "--metrics", "mutual_knn")
    (cells,) = rows_of(said([*sides, *options], capsys)).values()
    score, _, _, null, bound, p, calibrated = (float(cell.split(",")[0]) for cell in cells)
    assert score == pytest.approx(0.170, abs=0.004)
    assert null == pytest.approx(0.016, abs=0.001)
    assert (p, bound < 0.022, calibrated > 0.14) == (0.01, True, True)


# Encoders


@pytest.fixture
def pictures(here):
    """Twelve pictures with a caption each, one with a second."""
    (here / "mine").mkdir()
    rows = []
    for i in range(12):
        pixels = RNG.integers(0, 255, (9, 14, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(here / "mine" / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": f"{('cat', 'dog', 'mat')[i % 3]} {'abcdefghijkl'[i]}"})
    rows.insert(4, {"image": "2.png", "text": "again"})
    (here / "mine" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [row["text"] for row in rows if row["text"] != "again"]


def random(model, *inputs):
    """Parameters without running, or compiling, the model."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: 0.3 * RNG.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture
def sentences(here, pictures):
    """A BERT's folder."""
    tokenizer = wordpiece.train(pictures * 3, 60)
    model = bert.BERT(bert.BERTConfig(64, 16, width=8, depth=2, num_heads=2, hidden=16))
    variables = random(model, np.zeros((1, 8), int))
    weights.save_hf(here / "bert", model, variables)
    tokenizer.save(here / "bert" / "vocab.txt")
    return model, variables, tokenizer


def test_folders_of_weights_encode_a_folder_of_pictures(here, pictures, sentences, capsys):
    shutil.copytree(ROOT / "tests/goldens/hf_clip", here / "clip")
    out = said(["clip:image", "bert", "--data", "mine", *QUICK[2:], "--k", "2"], capsys)
    assert "x  clip:image: 12 rows, 2 layers of width 12" in out
    assert "y  bert: 12 rows, 2 layers of width 8" in out
    data = align.data_of("mine")
    model, variables, tokenizer = sentences
    wanted = layers.of_texts(model, variables, tokenizer.rows(pictures))
    np.testing.assert_allclose(align.features_of("bert:text", data), wanted, atol=1e-5)
    assert data.texts == pictures
    assert data.pictures(8).shape == (12, 8, 8, 3)


def test_a_decoder_reads_captions_too(here, pictures):
    shutil.copytree(ROOT / "tests/goldens/hf_gpt2", here / "gpt2")
    found = align.features_of("gpt2", align.data_of("mine"))
    assert found.shape[:2] == (12, 1)
    assert len(np.unique(found.round(5), axis=0)) == 12


def test_a_run_encodes_the_emoji_pack(here, monkeypatch):
    from mmjax.train import checkpoint, run_folder

    vision = clip.vit.ViTConfig(32, 16, width=8, depth=2, num_heads=2, hidden=16)
    text = clip.TextConfig(emoji.tokenizer().vocab_size, 24, width=12, depth=1, num_heads=2, hidden=16)
    model = clip.CLIP(clip.CLIPConfig(vision, text, embed_dim=4))
    variables = random(model, np.zeros((1, 32, 32, 3)), np.zeros((1, 24), int))
    experiment = types.SimpleNamespace(data=emoji.EmojiData(), task=types.SimpleNamespace(model=model, serve="params"))
    (here / "run").mkdir()
    monkeypatch.setattr(run_folder, "is_run", lambda path: path == Path("run"))
    monkeypatch.setattr(run_folder, "rebuild", lambda path: experiment)
    monkeypatch.setattr(checkpoint, "load_variables", lambda path, serve: variables)
    data = align.data_of("emoji:twemoji_concepts")
    images, texts = (align.features_of(f"run:{side}", data) for side in ("image", "text"))
    assert images.shape == (len(data.texts), 2, 8)
    assert texts.shape == (len(data.texts), 1, 12)
    pairs = emoji.EmojiData(32).pairs("twemoji_concepts")
    pixels = (pairs.images / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_allclose(images, layers.of_images(model, variables, pixels), atol=1e-5)
    with pytest.raises(ValueError, match="run holds a CLIP; give run:image or run:text, got neither"):
        align.features_of("run", data)


def test_pictures_of_the_pack_are_enlarged_for_large_encoders():
    found = align.data_of("emoji:twemoji_concepts").pictures(96)
    assert found.shape[1:] == (96, 96, 3)
    assert found.dtype == np.uint8


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.npz", "short.npy"], "x.npz has 30 rows and short.npy has 7; row i must be the same thing on both sides"),
        (["x.npz", "nan.npy"], "nan.npy: 2 of 30 rows hold NaN or infinity, the first is row 3"),
        (["x.npz", "rank.npy"], "rank.npy has the shape [30]; features are [N D], or [N L D]"),
        (["x.npz", "many.npz"], "many.npz holds 2 arrays of numbers; say which: many.npz:flat, many.npz:deep"),
        (["x.npz", "many.npz:text"], "many.npz has no array 'text'; it has flat, deep"),
        (["x.npz", "many.npz:name"], "many.npz:name holds <U1, but features are numbers"),
        (["x.npz", "words.npz"], "words.npz holds 0 arrays of numbers; features are"),
        (["x.npz", "gone.npy"], "gone.npy does not exist; give a file of features"),
        (["x.npz", "table.csv"], "table.csv is no file of features that can be read; give .npz, .npy, .pt or .gguf"),
        (["x.npz", "broken.npz"], "broken.npz can't be read ("),
        (["x.npz", "empty"], "empty is an encoder and needs something to read; add --data"),
        (["x.npz", "y.npy", "--data", "nowhere"], "--data nowhere is no folder; give one with pictures and captions"),
        (["x.npz", "y.npy", "--data", "emoji:twitter"], "no split 'twitter' of the emoji pack; there are train"),
        (["x.npz", "y.npy", "--metrics", "cka,knn"], "no metric knn; there are mutual_knn, cycle_knn, lcs_knn"),
        (["x.npz", "y.npy", "--k", "30"], "--k must be from 2 to 29, one less than the rows, got 30"),
        (["x.npz", "y.npy", "--permutations", "0"], "--permutations must be at least 1, got 0"),
        (["x.npz", "y.npy", "--intervals", "1"], "--intervals must be 0 for none, or at least 2 draws, got 1"),
        (["x.npz", "y.npy", "--k", "15", "--intervals", "9"], "those of 30 have 15, and must have at least 4 and more"),
        (["x.npz", "y.npy", "--clamp", "0"], "must be above 0 and at most 1, got 0.0"),
        (["four.npy", "four.npy"], "4 rows are too few to compare; give at least 5"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(here, arguments, message, capsys):
    bad = Y.copy()
    bad[3, 1], bad[5, 0] = np.nan, np.inf
    for name, x in (("short", Y[:7]), ("nan", bad), ("rank", Y[:, 0]), ("four", Y[:4])):
        np.save(f"{name}.npy", x)
    np.savez("words.npz", name=np.array(["a"]))
    Path("table.csv").write_text("1,2")
    Path("broken.npz").write_bytes(b"PK\x03\x04 not a file")
    Path("empty").mkdir()
    error = said(arguments, capsys, code=cli.MISTAKE)
    assert error.startswith("mmjax: error: ")
    assert message in error
    assert len(error.splitlines()) == 1
