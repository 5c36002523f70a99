"""Ferret's scores of names and boxes, on strings made by hand and beside apple/ml-ferret's own function."""

import json
from pathlib import Path

import pytest

from mmjax.evals import referring

WORDS = json.loads((Path(__file__).parents[1] / "goldens" / "ferret_words.json").read_text())
SIZE = (500, 200)  # 2 bins a pixel along x, 5 along y


def test_denials_are_taken_out_as_by_the_original():
    assert len(WORDS["denials"]) == 7
    for case in WORDS["denials"]:
        assert referring.affirmed(case["text"]) == case["left"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is a fire truck.", True),
        ("It is a fire engine, not a car.", True),
        ("A lorry of the red kind.", True),  # a synonym's part in brackets
        ("It is not a fire truck, it is a car.", False),
        ("It is a car and no fire truck.", False),
        ("It is a fire_truck.", False),  # the name has a blank, as it is said
        ("It is a car, not a fire truck", True),  # a denial that no mark ends stays
        ("It is a Fire Truck.", False),  # letters are compared as they are
    ],
)
def test_a_name_or_a_synonym_has_to_be_affirmed(answer, right):
    assert referring.named(answer, "fire_truck", ["fire_engine", "van_(red_kind)"]) is right


def test_the_right_class_comes_first_in_every_other_question():
    assert [referring.in_turn("cat", "dog", i)[0] for i in range(4)] == ["cat", "dog", "cat", "dog"]


def test_names_are_counted():
    metrics = referring.naming(["a cat", "a dog", "a cow"], [("cat", []), ("cat", ["dog"]), ("cat", ["kitten"])])
    assert metrics == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="3 answers and 1 targets"):
        referring.naming(["a"] * 3, [("cat", [])])
    with pytest.raises(ValueError, match="at most one part in brackets"):
        referring.named("a", "a", ["b_(c"])


def test_a_box_of_half_the_target_is_a_hit():
    target = (100, 40, 200, 80)
    # [200, 200, 400, 400] is the target in bins; half of it is still a hit, less is not.
    assert referring.hits("it [200, 200, 400, 400].", target, SIZE) == (True, True, True)
    assert referring.hits("it [200, 200, 300, 400].", target, SIZE) == (True, True, True)
    assert referring.hits("it [200, 200, 298, 400].", target, SIZE) == (False, False, False)


def test_first_mean_and_best_are_told_apart():
    target = (100, 40, 200, 80)
    right, wrong, other = "[200, 200, 400, 400]", "[0, 0, 10, 10]", "[390, 390, 790, 790]"
    assert referring.hits(f"a {wrong}. a {right}.", target, SIZE) == (False, False, True)
    assert referring.hits(f"a {right}. a {wrong}.", target, SIZE).first
    # The mean of a box too far left and one too far right.
    assert referring.hits("a [100, 200, 300, 400]. a [300, 200, 500, 400].", target, SIZE) == (False, True, False)
    assert referring.hits(f"a {other}.", target, SIZE) == (False, False, False)


def test_what_cannot_be_read_is_a_miss():
    target = (0, 0, 100, 100)
    for answer in ("nowhere", "it [1, 2, x, 4]", "it [1, 2, 3]", "it [0, 0, 200, 500]. that []"):
        assert referring.hits(answer, target, SIZE) == (False, False, False)
    answers = ["it [200, 200, 400, 400].", "nowhere"]
    metrics = referring.finding(answers, [(100, 40, 200, 80)] * 2, [SIZE] * 2)
    assert metrics == {"first": 0.5, "mean": 0.5, "best": 0.5}
