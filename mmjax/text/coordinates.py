"""Places as text: boxes and points that a language model reads and writes with the vocabulary it has.

Source: Chen et al. 2023, arXiv:2306.15195 (Shikra), section 4, with the exact grammar of shikras/shikra.

    "a cat <boxes> on a mat <boxes>", a group of boxes each --fill--> "a cat [0.120,0.300,0.480,0.900] on a mat [...]"
    text --read_boxes--> groups of boxes

A group is what one phrase means: boxes (x0, y0, x1, y1), or points (x, y), all in [0, 1] of the picture as the model
sees it (ops.images.in_square). `Plain` numbers are what Shikra is; `Bins`, a token for each thousandth, is what it was
compared with (section 6.1). Reading is as strict as the authors': a blank between two numbers, a number of two digits
before the point or a sign, and the whole group is no box. What is read may lie outside of [0, 1].
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

Group = Sequence[Sequence[float]]  # [n 4] boxes or [n 2] points of one phrase
BOXES, POINTS = "<boxes>", "<points>"  # where a group goes


class Form(Protocol):
    """A way of writing groups."""

    def write(self, group: Group) -> str: ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """[0.120,0.300,0.480,0.900], several of one phrase with ; between."""

    precision: int = 3  # digits after the point
    small_brackets: bool = False  # (0.120,...) in place of [0.120,...]

    def write(self, group: Group) -> str:
        """Halves are rounded as Python does, from the exact value in float64."""
        opening, closing = "()" if self.small_brackets else "[]"
        places = (",".join(f"{float(x):.{self.precision}f}" for x in place) for place in _checked(group))
        return opening + ";".join(places) + closing

    def read_boxes(self, text: str) -> list[list[list[float]]]:
        return self._read(text, 4)

    def read_points(self, text: str) -> list[list[list[float]]]:
        return self._read(text, 2)

    def _read(self, text: str, count: int) -> list[list[list[float]]]:
        opening, closing = (re.escape(one) for one in ("()" if self.small_brackets else "[]"))
        place = ",".join([r"\d(?:\.\d*)?"] * count)
        found = re.findall(f"{opening}({place}(?:;{place})*){closing}", text)
        return [[[float(x) for x in one.split(",")] for one in group.split(";")] for group in found]


@dataclasses.dataclass(frozen=True)
class Bins:
    """<b_st><bin_120> <bin_300> <bin_480> <bin_900><b_ed>: tokens of their own, `tokens()`."""

    count: int = 1001

    def write(self, group: Group) -> str:
        kind = "b" if len(_checked(group)[0]) == 4 else "p"
        places = (" ".join(f"<bin_{round(float(x) * (self.count - 1))}>" for x in place) for place in group)
        return f"<{kind}_st>" + f"<{kind}_sep>".join(places) + f"<{kind}_ed>"

    def read_boxes(self, text: str) -> list[list[list[float]]]:
        return self._read(text, "b", 4)

    def read_points(self, text: str) -> list[list[list[float]]]:
        """Also with blanks between, which `write` makes; the authors' own reader finds no points in what they write."""
        return self._read(text, "p", 2)

    def tokens(self) -> list[str]:
        """What a vocabulary needs besides, in the authors' order."""
        return [f"<{kind}_{part}>" for kind in "bp" for part in ("st", "sep", "ed")] + [
            f"<bin_{i}>" for i in range(self.count)
        ]

    def _read(self, text: str, kind: str, count: int) -> list[list[list[float]]]:
        place = r"<bin_\d+>" * count
        pattern = f"<{kind}_st>({place}(?:<{kind}_sep>{place})*)<{kind}_ed>"
        groups = [group.split(f"<{kind}_sep>") for group in re.findall(pattern, text.replace(" ", ""))]
        return [[[int(x) / (self.count - 1) for x in re.findall(r"\d+", one)] for one in group] for group in groups]


PLAIN = Plain()


def fill(text: str, boxes: Iterable[Group] = (), points: Iterable[Group] = (), *, form: Form = PLAIN) -> str:
    """Each <boxes> and each <points> of the text, from the left, becomes a group. Braces in the text stay as they are.

    Raises ValueError where places and groups don't match.
    """
    for placeholder, groups in ((BOXES, list(boxes)), (POINTS, list(points))):
        pieces = text.split(placeholder)
        if len(pieces) - 1 != len(groups):
            raise ValueError(
                f"{text!r} has {len(pieces) - 1} times {placeholder}, but {len(groups)} groups were given; "
                "a phrase with several boxes takes them as one group"
            )
        written = [form.write(group) for group in groups]
        text = pieces[0] + "".join(one + piece for one, piece in zip(written, pieces[1:], strict=True))
    return text


def _checked(group: Group) -> Group:
    sizes = {len(place) for place in group}
    if sizes not in ({2}, {4}):
        raise ValueError(f"a group is one or more boxes of 4 numbers or points of 2, got {group!r}")
    return group
