"""MMVP and MMVP-VLM: pairs of pictures that CLIP takes for the same, and questions about what sets them apart.

Source: Tong et al. 2024, arXiv:2401.06209, sections 2 and 3; the rules from tsb0601/MMVP (scripts/evaluate_vlm.py,
evaluate_mllm.py). The data (MMVP/MMVP_VLM, MMVP/MMVP on the hub) are read from a local folder:

    MMVP-VLM    Questions.csv: number, pattern, statement; IMAGES/PATTERN/NUMBER.jpg       for models like CLIP
    MMVP        Questions.csv: Question, Options, Correct Answer; and a file of answers    for models that answer

Two rows one after another are a pair, and a pair counts only if both are right: chance is 25 %. Of MMVP-VLM a statement
chooses one of the two pictures of its pair; which of two statements fits a picture is not asked.

    [P 2 2] cosines of statement and picture -> right where s11 > s12 and s22 >= s21; what is equal goes to the second
    picture, as in the original, so that a model to which all is equal scores 0

MMVP is graded without a model: an answer names the letter of an option or its text. P pairs, E width.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image

from mmjax.data.folder import jsonl_rows
from mmjax.evals import features
from mmjax.nn.outputs import Result
from mmjax.ops import images as image_ops
from mmjax.report import pictures
from mmjax.report.page import CHANCE

PATTERNS = (  # of MMVP-VLM, in the order of the original's code
    "orientation_and_direction", "presence_of_specific_features", "state_and_condition", "quantity_and_count",
    "positional_and_relational_context", "color_and_appearance", "structural_characteristics", "texts",
    "viewpoint_and_perspective",
)  # fmt: skip
QUESTIONS = "Questions.csv"
FOLDERS = ("MLLM_VLM Images", "MMVP_VLM_Images")  # the first in the original's code, the second in its README
PROMPT = "a photo of {}"
BOTH_RIGHT = 0.25  # of two answers to choose from, twice


class VLMPairs(NamedTuple):
    statements: list[str]  # 2P
    images: np.ndarray  # [2P H W 3]


# MMVP-VLM


def read_vlm(folder: str | Path, prepare: Callable[[Image.Image], Any], images: str | None = None) -> VLMPairs:
    """Statement and picture of each row of Questions.csv; images: the folder of pictures, None: whichever is there."""
    folder = Path(folder)
    path, rows = folder / QUESTIONS, _rows(folder / QUESTIONS)
    if any(len(row) != 3 for _, row in rows):
        line, row = next((line, row) for line, row in rows if len(row) != 3)
        raise ValueError(f"{path}, line {line}: expected number, pattern and statement, got {len(row)} columns")
    if len(rows) % 2:
        raise ValueError(f"{path} has {len(rows)} rows after its head; two rows are a pair, so their number is even")
    if not rows or len(rows) % (2 * len(PATTERNS)):
        raise ValueError(
            f"{path} has {len(rows) // 2} pairs; the {len(PATTERNS)} patterns follow one another with as many pairs "
            "each, so their number is 9 or a multiple of it (135 as published)"
        )
    place = _pictures_of(folder, images)
    found = []
    for (line, (number, pattern, _)), (next_line, (next_number, _, _)) in zip(rows[::2], rows[1::2], strict=True):
        if not (number.strip().isdigit() and next_number.strip().isdigit()):
            raise ValueError(f"{path}, lines {line} and {next_line}: the first column is a number, got {number!r}")
        if (int(number) % 2, int(next_number) % 2) != (1, 0):
            raise ValueError(
                f"{path}, lines {line} and {next_line}: the numbers of a pair are odd and even, which says the picture "
                f"that each statement means, got {number} and {next_number}"
            )
        inside = _folder_of(place, pattern, path, line)  # that of the first row holds both pictures
        found += [_picture(inside / f"{int(one)}.jpg", path, line, prepare) for one in (number, next_number)]
    return VLMPairs([row[2].strip() for _, row in rows], np.stack(found))


def pairs_right(cosines: np.ndarray) -> np.ndarray:
    """[P 2 2] of statements and pictures -> [P] bool. Numbers that are not finite are wrong."""
    first = cosines[:, 0, 0] > cosines[:, 0, 1]
    second = cosines[:, 1, 1] >= cosines[:, 1, 0]
    return first & second


def vlm_metrics(right: np.ndarray) -> dict[str, float]:
    """right [P] in the order of the file -> the mean of the nine patterns, and each of them, by position."""
    by_pattern = rearrange(right, "(k p) -> k p", k=len(PATTERNS)).mean(1)
    scores = {"pairs_right": float(by_pattern.mean())} | dict(zip(PATTERNS, map(float, by_pattern), strict=True))
    return {f"mmvp_vlm/{name}{end}": x for name, score in scores.items() for end, x in (("", score), (CHANCE, 0.25))}


def vlm(
    model: Any,
    variables: dict,
    tokenize: Callable[[Sequence[str]], dict],
    folder: str | Path,
    *,
    images: str | None = None,
    prepare: Callable[[Image.Image], Any] | None = None,
) -> Result:
    """Score of any model with encode_image and encode_text.

    tokenize: texts -> what encode_text takes, as clip_bpe.load(FOLDER).rows with a length. prepare: a picture -> uint8
    or normalised float [H W 3]; None: cut out as OpenAI's CLIP does. SigLIP squeezes: partial(image_ops.resize,
    height=224, width=224).
    """
    size = getattr(model.config, "vision", model.config).image_size if prepare is None else 0
    pairs = read_vlm(folder, prepare or partial(image_ops.cover, size=size), images)
    texts = features.encode_texts(model, variables, tokenize, [PROMPT.replace("{}", one) for one in pairs.statements])
    seen = features.encode_images(model, variables, pairs.images)
    of_pairs = [rearrange(one, "(p two) e -> p two e", two=2) for one in (texts, seen)]
    right = pairs_right(np.einsum("pte,pie->pti", *of_pairs))
    return Result(vlm_metrics(right), {"mmvp_vlm pairs": vlm_picture(pairs, right)})


def vlm_picture(pairs: VLMPairs, right: np.ndarray) -> np.ndarray:
    """The first pair of each pattern, under its first statement; framed where both statements found their picture."""
    rows = []
    for p in range(0, len(right), len(right) // len(PATTERNS)):
        images = pairs.images[2 * p : 2 * p + 2]
        images = images if images.dtype == np.uint8 else _bytes(images)
        rows.append(pictures.Row(pairs.statements[2 * p], images, np.full(2, right[p])))
    return pictures.captioned(pictures.gallery(rows, columns=3), "One pair of each pattern; ticked where right.")


def _bytes(images: np.ndarray) -> np.ndarray:
    """Normalised numbers as something to look at."""
    low, high = images.min(), images.max()
    return (255 * (images - low) / max(high - low, 1e-12)).astype(np.uint8)


def _pictures_of(folder: Path, name: str | None) -> Path:
    for one in FOLDERS if name is None else (name,):
        if (folder / one).is_dir():
            return folder / one
    wanted = " or ".join(repr(one) for one in (FOLDERS if name is None else (name,)))
    raise FileNotFoundError(f"{folder} has no folder {wanted} of pictures; name it with images=")


def _folder_of(place: Path, pattern: str, path: Path, line: int) -> Path:
    if pattern.strip() and (place / pattern.strip()).is_dir():
        return place / pattern.strip()
    there = sorted(one.name for one in place.iterdir() if one.is_dir())
    near = difflib.get_close_matches(pattern, there, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(there) or 'none'}"
    raise ValueError(f"{path}, line {line}: no pattern {pattern!r}, which is a folder of {place}{hint}")


def _picture(path: Path, questions: Path, line: int, prepare: Callable[[Image.Image], Any]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{questions}, line {line}, asks about the picture {path}, which is not there")
    try:
        with Image.open(path) as image:
            return np.asarray(prepare(image.convert("RGB")))
    except OSError as error:
        raise ValueError(f"{path} can't be read as a picture ({error}); copy it again") from error


# MMVP


class Question(NamedTuple):
    text: str
    options: dict[str, str]  # letter -> text
    right: str  # the letter


def read_questions(path: str | Path) -> list[Question]:
    """Questions.csv of MMVP: columns Question, Options as "(a) Open (b) Closed", and Correct Answer as "(a)"."""
    path = Path(path)
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    missing = [name for name in ("Question", "Options", "Correct Answer") if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {rows.fieldnames}")
    found = []
    for row in rows:
        line, options = rows.line_num, options_of(row["Options"] or "")
        if set(options) != {"a", "b"}:
            raise ValueError(
                f"{path}, line {line}: expected options like '(a) Open (b) Closed', got {row['Options']!r}"
            )
        right = graded(row["Correct Answer"] or "", options)
        if right is None:
            raise ValueError(
                f"{path}, line {line}: the correct answer is {row['Correct Answer']!r}, expected (a) or (b)"
            )
        found.append(Question(row["Question"], options, right))
    if not found or len(found) % 2:
        raise ValueError(f"{path} has {len(found)} questions; two rows are a pair, so their number is even")
    return found


def options_of(text: str) -> dict[str, str]:
    """ "(a) Open (b) Closed" -> {"a": "Open", "b": "Closed"}."""
    parts = re.split(r"\(([a-z])\)", text.strip(), flags=re.IGNORECASE)
    return {letter.lower(): option.strip(" ,;\n") for letter, option in zip(parts[1::2], parts[2::2], strict=True)}


def read_answers(path: str | Path, count: int) -> list[str]:
    """A JSON line for each question, in any order: {"question_id": 1, "response": "(a) Open"}, numbered from 1.

    Further fields, as the original's script writes them, are not read: what is right stands in Questions.csv.
    """
    path, found, wanted = Path(path), {}, '{"question_id": 1, "response": "..."}'
    for line, record in jsonl_rows(path, _text(path), wanted):
        number, response = record.get("question_id"), record.get("response")
        if not isinstance(number, int) or not isinstance(response, str):
            raise ValueError(f"{path}, line {line}: expected {wanted}, got {json.dumps(record)}")
        if not 1 <= number <= count or number in found:
            why = "comes twice" if number in found else f"is not from 1 to {count}"
            raise ValueError(f"{path}, line {line}: question_id {number} {why}")
        found[number] = response
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise ValueError(f"{path} has no answer to {len(missing)} of {count} questions, the first is {missing[0]}")
    return [found[number] for number in range(1, count + 1)]


def graded(answer: str, options: dict[str, str]) -> str | None:
    """The letter that an answer means, None if that can't be told.

    In this order: "(a)" anywhere, if no other letter stands so; a letter that is all, or comes first with a sign after
    it, or after "answer is" or "option"; the text of one option and not of another, whole words, "not" before it being
    none. A text that is part of another is seen only outside of it.
    """
    letters = "".join(options)
    named = {letter.lower() for letter in re.findall(rf"\(([{letters}])\)", answer, re.IGNORECASE)}
    if named:
        return named.pop() if len(named) == 1 else None
    lone = rf"(?:a\b(?!\s+\w)|(?!a)[{letters}]\b)"  # "a" before a word is an article
    said = rf"^\W*([{letters}])(?:\W*$|\s*[.):,])|\b(?:answer(?:\s+is)?|option|choice)\s*:?\s*({lone})"
    if match := re.search(said, answer.strip(), re.IGNORECASE):
        return (match[1] or match[2]).lower()
    rest, texts = _words(answer), {letter: _words(text) for letter, text in options.items()}
    found = set()
    for letter, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        pattern = rf"(?<!\w)(?<!\bnot )(?<!\bnot a )(?<!\bnot the ){re.escape(text)}(?!\w)"
        if text and re.search(pattern, rest):
            found.add(letter)
            rest = re.sub(pattern, "", rest)
    return found.pop() if len(found) == 1 else None


def mmvp(questions: str | Path, answers: str | Path) -> Result:
    """Score of a file of answers (see `read_answers`) to a Questions.csv."""
    asked = read_questions(questions)
    said = read_answers(answers, len(asked))
    letters = [graded(answer, question.options) for answer, question in zip(said, asked, strict=True)]
    right = np.array([letter == question.right for letter, question in zip(letters, asked, strict=True)])
    return Result(
        {
            "mmvp/pairs_right": float(rearrange(right, "(p two) -> p two", two=2).all(1).mean()),
            f"mmvp/pairs_right{CHANCE}": BOTH_RIGHT,
            "mmvp/accuracy": float(right.mean()),
            f"mmvp/accuracy{CHANCE}": 0.5,
            "mmvp/unparsable": float(np.mean([letter is None for letter in letters])),
        }
    )


def _words(text: str) -> str:
    """Lower case, signs as spaces."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line, columns) of a CSV after its head."""
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    return [(reader.line_num, row) for row in reader if row][1:]
