"""What scenes are made of and how people ask about them: attributes, held-out pairs, wordings. Torch-free.

Every wording tells which kind of answer it wants, and every word of a held-out wording occurs in training wordings
of the same kind, so that only the arrangement is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS: Mapping[str, str] = MappingProxyType({shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES})

Pair = tuple[str, str]
"""A colour and a shape."""

HELD_OUT_PAIRS: tuple[Pair, ...] = (
    ("red", "triangle"),
    ("green", "cross"),
    ("blue", "circle"),
    ("yellow", "square"),
)
"""Never shown with `combinations: training`, though each colour and each shape is."""

ALL_PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
TRAINING_PAIRS: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)

NOUNS = ("object", "shape")
"""Stand for any shape when only the colour is named."""

WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "box": (
            "box the {one}",
            "draw a box around the {one}",
            "give the box of the {one}",
            "put a box on the {one}",
        ),
        "point": (
            "point to the {one}",
            "click on the {one}",
            "point at the {one}",
            "click the centre of the {one}",
        ),
        "count": (
            "count the {many}",
            "how many {many} are there?",
            "what is the number of {many}?",
        ),
        "describe": (
            "describe the picture",
            "what is in the picture?",
            "list the objects from left to right",
        ),
    }
)

HELD_OUT_WORDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "box": ("draw the box of the {one}", "put a box around the {one}"),
        "point": ("point to the centre of the {one}", "click at the {one}"),
        "count": ("what number of {many} are there?", "count how many {many} there are"),
        "describe": ("describe what is in the picture", "list the objects in the picture from left to right"),
    }
)


def wordings(kind: str, which: str) -> tuple[str, ...]:
    """The wordings of a kind of question: `training`, `held_out` or `all`."""
    return {
        "training": WORDINGS[kind],
        "held_out": HELD_OUT_WORDINGS[kind],
        "all": WORDINGS[kind] + HELD_OUT_WORDINGS[kind],
    }[which]


def pairs(which: str) -> tuple[Pair, ...]:
    """The pairs of colour and shape that a scene may show; with `held_out`, the others still serve as distractors."""
    return TRAINING_PAIRS if which == "training" else ALL_PAIRS


def references(plural: bool) -> Iterator[str]:
    """Every way to name objects: by colour, by shape, by both."""
    for colour in COLOURS:
        for noun in NOUNS:
            yield f"{colour} {noun}{'s' if plural else ''}"
    for shape in SHAPES:
        noun = PLURALS[shape] if plural else shape
        yield noun
        yield from (f"{colour} {noun}" for colour in COLOURS)


def all_texts(most_objects: int = 12) -> Iterator[str]:
    """Every question and every word of every answer, for training a tokenizer on them."""
    for kind, templates in WORDINGS.items():
        for template in templates + HELD_OUT_WORDINGS[kind]:
            if "{" not in template:
                yield template
                continue
            for reference in references(plural="{many}" in template):
                yield template.format(one=reference, many=reference)
    yield from (str(number) for number in range(most_objects + 1))
    yield ", ".join(f"{colour} {shape}" for colour, shape in ALL_PAIRS)
