"""MMVP and MMVP-VLM on folders made here, graded by hand."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from mmjax.evals import mmvp
from mmjax.ops import images as image_ops

TYPES = ("Direction", "Presence", "State", "Count", "Place", "Colour", "Structure", "Text", "View")


class Config:
    image_size = 4


class Grey(nn.Module):
    """An image's brightness is an angle, and so is a text's first token."""

    config = Config

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B 4 4 3] -> [B 2]
        angle = images.astype(jnp.float32).mean((1, 2, 3)) / 255
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    def encode_text(self, input_ids: jax.Array) -> jax.Array:  # [B 1] -> [B 2]
        angle = input_ids[:, 0].astype(jnp.float32) / 255
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


def tokenize(texts):
    assert all(text.startswith("a photo of ") for text in texts)
    return {"input_ids": np.array([[int(text.split()[-1])] for text in texts])}


def vlm_folder(folder, pairs_each=1, images="MLLM_VLM Images", wrong=(), first=("number", "type", "statement")):
    """Pair p has pictures of brightness 40 and 200; statements name the brightness, swapped in the pairs `wrong`."""
    rows = [first]
    for p in range(9 * pairs_each):
        pattern = TYPES[p % 9]  # on purpose not the order of the file: categories go by position
        (folder / images / pattern).mkdir(parents=True, exist_ok=True)
        for k, grey in enumerate((40, 200)):
            number = 2 * p + 1 + k
            # PNG under the name that is expected: JPEG would change the grey
            Image.new("RGB", (6, 9), (grey,) * 3).save(folder / images / pattern / f"{number}.jpg", "png")
            rows.append((str(number), pattern, f"brightness {240 - grey if p in wrong else grey}"))
    write(folder, rows)
    return folder


def write(folder, rows):
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read(folder):
    with (folder / "Questions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def score(folder, **options):
    return mmvp.vlm(Grey(), {}, tokenize, folder, **options).metrics


def test_the_four_cases_of_a_pair_and_ties():
    tables = np.array(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # both statements find their picture
            [[0.9, 0.1], [0.8, 0.2]],  # the second takes the first picture
            [[0.1, 0.9], [0.2, 0.8]],  # the first takes the second picture
            [[0.1, 0.9], [0.8, 0.2]],  # both wrong
            [[0.5, 0.5], [0.2, 0.8]],  # what is equal goes to the second picture,
            [[0.9, 0.1], [0.5, 0.5]],  # which is the right one of the second statement
            [[np.nan, 0.1], [0.2, 0.8]],
            [[0.9, 0.1], [0.2, np.nan]],
            [[0.3, 0.2], [0.8, 0.9]],  # right, though both pictures fit the second statement better
        ]
    )
    expected = [True, False, False, False, False, True, False, False, True]
    np.testing.assert_array_equal(mmvp.pairs_right(tables), expected)
    # The same by the original's rule: softmax over the pictures, first picture where its chance is above 0.5.
    chance = np.exp(100 * tables) / np.exp(100 * tables).sum(-1, keepdims=True)
    first = chance[..., 0] > 0.5
    np.testing.assert_array_equal((first[:, 0] & ~first[:, 1])[:6], expected[:6])
    swapped = tables[:, :, ::-1]
    assert not mmvp.pairs_right(swapped)[0]
    assert mmvp.pairs_right(swapped)[3]


def test_verdicts_equal_the_golden():
    golden = np.load("tests/goldens/mof.npz")
    np.testing.assert_array_equal(mmvp.pairs_right(golden["mmvp/similarities"]), golden["mmvp/correct"])


def test_a_blind_guess_is_right_in_a_quarter_of_the_pairs():
    tables = np.random.default_rng(0).random((20_000, 2, 2))
    assert mmvp.pairs_right(tables).mean() == pytest.approx(0.25, abs=0.01)


def test_patterns_go_by_position_and_weigh_the_same(tmp_path):
    # Two pairs for each pattern. Wrong: both of the first, one of the last.
    metrics = score(vlm_folder(tmp_path, pairs_each=2, wrong=(0, 1, 17)))
    assert metrics["mmvp_vlm/orientation_and_direction"] == 0
    assert metrics["mmvp_vlm/presence_of_specific_features"] == 1
    assert metrics["mmvp_vlm/viewpoint_and_perspective"] == 0.5
    assert metrics["mmvp_vlm/pairs_right"] == pytest.approx(7.5 / 9)
    assert metrics["mmvp_vlm/pairs_right_chance"] == 0.25
    assert sum(not name.endswith("_chance") for name in metrics) == 10


def test_published_counts():
    right = np.zeros(135, bool)
    right[15:30] = True
    metrics = mmvp.vlm_metrics(right)
    assert metrics["mmvp_vlm/presence_of_specific_features"] == 1
    assert metrics["mmvp_vlm/pairs_right"] == pytest.approx(1 / 9)


def test_both_names_of_the_folder_and_any_other(tmp_path):
    for name, asked in (("MLLM_VLM Images", None), ("MMVP_VLM_Images", None), ("mine", "mine")):
        folder = tmp_path / name
        folder.mkdir()
        assert score(vlm_folder(folder, images=name), images=asked)["mmvp_vlm/pairs_right"] == 1
    with pytest.raises(FileNotFoundError, match=r"'MLLM_VLM Images' or 'MMVP_VLM_Images' of pictures"):
        score(tmp_path / "mine")


def test_pictures_are_prepared_as_asked(tmp_path):
    asked = []

    def prepare(image):
        asked.append(image.size)
        return image_ops.resize(image, 4, 4)

    result = mmvp.vlm(Grey(), {}, tokenize, vlm_folder(tmp_path), prepare=prepare)
    assert asked == [(6, 9)] * 18
    assert list(result.pictures) == ["mmvp_vlm pairs"]
    floats = mmvp.vlm(Grey(), {}, tokenize, tmp_path, prepare=lambda image: prepare(image).astype(np.float32))
    assert floats.metrics["mmvp_vlm/pairs_right"] == 1


def test_errors_name_file_line_and_what_was_wanted(tmp_path):
    rows = read(vlm_folder(tmp_path))

    def fails(changed, match, kind=ValueError):
        write(tmp_path, changed)
        with pytest.raises(kind, match=match):
            score(tmp_path)

    fails(rows[:-1], r"Questions.csv has 17 rows after its head; two rows are a pair")
    fails(rows[:-2], r"has 8 pairs; the 9 patterns .* 9 or a multiple of it")
    fails([*rows[:5], ["5", "Staet", "x 1"], *rows[6:]], r"line 6: no pattern 'Staet', .*did you mean 'State'")
    fails([*rows[:5], ["5", "Xyz", "x 1"], *rows[6:]], r"line 6: no pattern 'Xyz', .*there are Colour, Count")
    fails([*rows[:5], ["5", "x"], *rows[6:]], r"line 6: expected number, pattern and statement, got 2 columns")
    fails([rows[0], rows[2], rows[1], *rows[3:]], r"lines 2 and 3: the numbers of a pair are odd and even")
    fails([rows[0], ["one", *rows[1][1:]], *rows[2:]], r"the first column is a number, got 'one'")
    missing = [rows[0], ["99", *rows[1][1:]], *rows[2:]]
    fails(missing, r"line 2, asks about the picture .*99.jpg, which is not there", FileNotFoundError)
    write(tmp_path, rows)
    (tmp_path / "MLLM_VLM Images" / "Direction" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1.jpg can't be read as a picture"):
        score(tmp_path)
    (tmp_path / "Questions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"Questions.csv does not exist"):
        score(tmp_path)


OPTIONS = {"a": "Open", "b": "Not fully open"}


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("(a)", OPTIONS, "a"),
        ("(B) Not fully open", OPTIONS, "b"),
        ("The right one is (b).", OPTIONS, "b"),
        ("Either (a) or (b)", OPTIONS, None),
        ("a", OPTIONS, "a"),
        ("B.", OPTIONS, "b"),
        ("b) not fully open", OPTIONS, "b"),
        ("The answer is b because of the hinge", OPTIONS, "b"),
        ("Answer: A", OPTIONS, "a"),
        ("OPEN", OPTIONS, "a"),
        ("The door is open.", OPTIONS, "a"),
        ("It is not fully open!", OPTIONS, "b"),
        ("I can't see a door", OPTIONS, None),
        ("", OPTIONS, None),
        ("A dog", {"a": "A cat", "b": "A dog"}, "b"),
        ("The answer is a dog", {"a": "A cat", "b": "A dog"}, "b"),
        ("a dog, not a cat", {"a": "Cat", "b": "Dog"}, "b"),
        ("A cat and a dog", {"a": "Cat", "b": "Dog"}, None),
        ("Yes, it is.", {"a": "Yes", "b": "No"}, "a"),
        ("No", {"a": "Yes", "b": "No"}, "b"),
        ("I know nothing", {"a": "Yes", "b": "No"}, None),
        ("Two", {"a": "1", "b": "Two"}, "b"),
    ],
)
def test_an_answer_is_a_letter_or_the_text_of_one_option(answer, options, letter):
    assert mmvp.graded(answer, options) == letter


def mmvp_files(folder, responses, correct=("(a)", "(b)", "(b)", "(a)")):
    write(folder, [["Index", "Question", "Options", "Correct Answer"]] + [
        [str(k + 1), "Is it open?", "(a) Open (b) Closed", one] for k, one in enumerate(correct)
    ])  # fmt: skip
    lines = [json.dumps({"question_id": k + 1, "response": one, "model_id": "x"}) for k, one in enumerate(responses)]
    (folder / "answers.jsonl").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    return folder / "Questions.csv", folder / "answers.jsonl"


def test_a_pair_counts_where_both_answers_are_right(tmp_path):
    metrics = mmvp.mmvp(*mmvp_files(tmp_path, ["(a)", "closed", "(b)", "who knows"])).metrics
    assert metrics == {
        "mmvp/pairs_right": 0.5,
        "mmvp/pairs_right_chance": 0.25,
        "mmvp/accuracy": 0.75,
        "mmvp/accuracy_chance": 0.5,
        "mmvp/unparsable": 0.25,
    }


def test_errors_of_mmvp(tmp_path):
    questions, answers = mmvp_files(tmp_path, ["(a)"] * 3)
    with pytest.raises(ValueError, match=r"no answer to 1 of 4 questions, the first is 4"):
        mmvp.mmvp(questions, answers)
    questions, answers = mmvp_files(tmp_path, ["(a)"] * 5)
    with pytest.raises(ValueError, match=r"line 1: question_id 5 is not from 1 to 4"):
        mmvp.mmvp(questions, answers)
    answers.write_text('{"question_id": 1, "response": "(a)"}\n' * 2)
    with pytest.raises(ValueError, match=r"line 2: question_id 1 comes twice"):
        mmvp.mmvp(questions, answers)
    answers.write_text('{"question_id": 1, "text": "(a)"}\n')
    with pytest.raises(ValueError, match=r'line 1: expected \{"question_id": 1, "response"'):
        mmvp.mmvp(questions, answers)
    answers.write_text("{\n")
    with pytest.raises(ValueError, match=r"line 1, column \d+: not JSON"):
        mmvp.mmvp(questions, answers)
    for correct, match in (
        (("(a)", "(b)", "(a)"), "3 questions; two rows are a pair"),
        (("(c)", "(b)"), r"line 2: the correct answer is '\(c\)'"),
    ):
        with pytest.raises(ValueError, match=match):
            mmvp.mmvp(mmvp_files(tmp_path, ["(a)"] * len(correct), correct)[0], answers)
    write(tmp_path, [["Question", "Options", "Correct Answer"], ["?", "open or closed", "(a)"]])
    with pytest.raises(ValueError, match=r"line 2: expected options like '\(a\) Open \(b\) Closed'"):
        mmvp.mmvp(questions, answers)
    write(tmp_path, [["Question", "Choices"], ["?", "x"]])
    with pytest.raises(ValueError, match=r"has no column Options, Correct Answer"):
        mmvp.mmvp(questions, answers)
