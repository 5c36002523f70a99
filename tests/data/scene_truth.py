"""What a reader of a scene would answer: from the words of a question and the true boxes, without any margin.

Shares nothing with mmjax.data.scene_turns, not even its templates. Places are written as the number of the thing:
"#2" for its box, "@2" for the point in its middle.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

WORDS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, direction


class Seen(NamedTuple):
    """A thing; those later in a list lie on top."""

    name: str
    box: Sequence[float]
    visible: float
    spot: tuple[float, float]  # x, y


def written(conversation, said: str = "") -> list[tuple[str, str]]:
    """Turns -> (question with all that was said before, answer), marks as numbers."""
    found = []
    for turn in conversation:
        boxes, points = list(turn.boxes), list(turn.points)
        texts = []
        for text in (turn.question, turn.answer):
            while mark := re.search("<boxes>|<points>", text):
                sign, group = ("#", boxes.pop(0)) if mark[0] == "<boxes>" else ("@", points.pop(0))
                text = text[: mark.start()] + " ".join(f"{sign}{i}" for i in group) + text[mark.end() :]
            texts.append(text)
        assert not boxes
        assert not points
        found.append((said + texts[0], texts[1]))
        said += f"{texts[0]} {texts[1]} | "
    return found


def middle(thing: Seen, axis: int) -> float:
    return (thing.box[axis] + thing.box[axis + 2]) / 2


def side(thing: Seen) -> float:
    return max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1])


def touch(a: Seen, b: Seen) -> bool:
    return all(a.box[k] < b.box[k + 2] and b.box[k] < a.box[k + 2] for k in (0, 1))


def listing(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def answers(question: str, things: Sequence[Seen]) -> list[str]:
    """Every answer that could be given, each as often as a thing gives it."""
    numbers = range(len(things))

    def called(name: str) -> list[int]:
        return [i for i in numbers if things[i].name == name]

    def beyond(words: str, anchor: int) -> list[int]:
        axis, way = WORDS[words]
        return [i for i in numbers if way * (middle(things[i], axis) - middle(things[anchor], axis)) > 0]

    def behind(top: int) -> list[int]:
        return [i for i in numbers if i < top and touch(things[i], things[top])]

    row = sorted(numbers, key=lambda i: middle(things[i], 0))
    sides = "|".join(WORDS)
    if match := re.search(r"\?* \| and what is left of it\?$", question):
        said = question[: match.start()]
        return [things[i].name for i in beyond("left of", int(re.search(r"#(\d+)$", said)[1]))]
    if match := re.fullmatch(r"(?:what is at|name the thing in) #(\d+)[.?]|#(\d+) holds what\?", question):
        return [things[int(match[1] or match[2])].name]
    if match := re.fullmatch(r"(?:what is at|name the thing at) @(\d+)[.?]", question):
        at = things[int(match[1])].spot
        return [t.name for t in things if all(t.box[k] <= at[k] <= t.box[k + 2] for k in (0, 1))]
    if match := re.fullmatch(rf"(?:where is|find) the (.+) ({sides}) the (.+)[.?]", question):
        return [f"#{i}" for a in called(match[3]) for i in beyond(match[2], a) if i in called(match[1])]
    if match := re.fullmatch(r"(?:where is|find|show me) the (.+)[.?]", question):
        return [f"#{i}" for i in called(match[1])]
    if match := re.fullmatch(r"(?:point at|touch) the (.+)\.", question):
        return [f"@{i}" for i in called(match[1])]
    if match := re.fullmatch(r"(?:is|can you see) the (.+?)(?: there| in the picture)?\?", question):
        return ["yes" if called(match[1]) else "no"]
    if question in ("how many things are there?", "count the things."):
        return [str(len(things))]
    if match := re.fullmatch(r"what is left of the (.+)\? show your steps\.", question):
        found = [(a, i) for a in called(match[1]) for i in beyond("left of", a)]
        return [f"{match[1]} #{a}, left of it #{i}: {things[i].name}" for a, i in found]
    if match := re.fullmatch(rf"(?:what is|name the thing) ({sides}) the (.+)[.?]", question):
        return [things[i].name for a in called(match[2]) for i in beyond(match[1], a)]
    if match := re.fullmatch(r"(?:what is|name the thing) behind the (.+)[.?]", question):
        return [things[i].name for top in called(match[1]) for i in behind(top)]
    if match := re.fullmatch(r"(?:which is bigger, )?the (.+) or the (.+?)(?:, which is bigger)?\?", question):
        first, second = ([things[i] for i in called(name)] for name in match.groups())
        return [max(a, b, key=side).name for a in first for b in second]
    if question in ("what is in the picture?", "describe the picture."):
        return [listing([things[i].name for i in row])]
    places = listing([f"{things[i].name} #{i}" for i in row])
    if question in ("what is in the picture and where?", "describe the picture with places."):
        return [places]
    if question in ("count the things aloud.", "how many things are there? show each."):
        return [f"{places}: {len(things)}"]
    raise AssertionError(f"no reader understands {question!r}")
