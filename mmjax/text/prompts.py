"""Sentences to put a class name into, for zero-shot classification (Radford et al. 2021, section 3.1.4)."""

from collections.abc import Sequence

NAME = ("{}",)
PICTURES = (
    "a picture of {}",
    "a drawing of {}",
    "a small icon that shows {}",
    "{}, seen from the front",
    "one {} on a plain ground",
    "a colourful image of {}",
    "an emoji: {}",
)
PHOTOS = (
    "a photo of {}",
    "a close-up of {}",
    "{} in daylight",
    "a blurred photo of {}",
    "a photo of {} from far away",
    "a bright photo of {}",
    "a photo of one {}",
)


def fill(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each name in each template, name by name: names N, templates K -> N * K sentences."""
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"a template holds {{}} once, where the name goes; got {wrong or 'no templates'}")
    return [template.replace("{}", name) for name in names for template in templates]
