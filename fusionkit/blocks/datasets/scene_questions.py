"""Questions about a laid-out scene and their exact answers. Torch- and numpy-free.

A box or point question is asked only where exactly one object answers it. Counts may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from fusionkit.blocks.datasets.scene_layout import Thing, askable
from fusionkit.blocks.datasets.scene_words import (
    COLOURS,
    HELD_OUT_WORDINGS,
    NOUNS,
    PLURALS,
    SHAPES,
    wordings,
)
from fusionkit.blocks.datasets.specs import SyntheticScenesConfig
from fusionkit.sample import Segment, Turn

HELD_OUT_COMBINATION = "held_out_combination"
HELD_OUT_PHRASING = "held_out_phrasing"
_REDRAWS = 4


def ask(config: SyntheticScenesConfig, things: Sequence[Thing], random: Random) -> tuple[Turn, ...]:
    """`config.turns` questions; the same wording about the same objects is avoided while there are others."""
    kinds = [kind for kind, weight in config.kinds.items() if weight > 0]
    if config.combinations == "held_out":
        kinds = [kind for kind in kinds if kind in ("box", "point")]
    drawn = random.choices(kinds, [config.kinds[kind] for kind in kinds], k=config.turns)
    turns: list[Turn] = []
    asked: set[str] = set()
    for kind in drawn:
        turn = _one(kind, config, things, random)
        for _ in range(_REDRAWS):
            if turn.question not in asked:
                break
            turn = _one(kind, config, things, random)
        asked.add(turn.question)
        turns.append(turn)
    return tuple(turns)


def describe(things: Sequence[Thing]) -> str:
    """The names of the objects from left to right (by centre; from top to bottom where level)."""
    return ", ".join(thing.name for thing in sorted(things, key=lambda t: (2 * t.x + t.side, 2 * t.y + t.side)))


def _one(kind: str, config: SyntheticScenesConfig, things: Sequence[Thing], random: Random) -> Turn:
    wording = random.choice(wordings(kind, config.phrasings))
    if kind == "describe":
        return _turn(kind, wording, wording, (describe(things),), things)
    if kind == "count":
        many, counted = _counted(config, things, random)
        return _turn(kind, wording, wording.format(many=many), (str(len(counted)),), counted)
    pairs = [thing.pair for thing in things]
    target = things[random.choice(askable(pairs, config.combinations == "held_out"))]
    question = wording.format(one=_reference(config, target, things, random))
    answer = target.box if kind == "box" else target.box.centre
    return _turn(kind, wording, question, (answer,), (target,))


def _turn(kind: str, wording: str, question: str, answer: tuple[Segment, ...], about: Sequence[Thing]) -> Turn:
    tags = []
    if any(thing.held_out for thing in about):
        tags.append(HELD_OUT_COMBINATION)
    if wording in HELD_OUT_WORDINGS[kind]:
        tags.append(HELD_OUT_PHRASING)
    return Turn(question, answer, kind, tuple(tags))


def _reference(config: SyntheticScenesConfig, target: Thing, things: Sequence[Thing], random: Random) -> str:
    """Name the target: by one attribute at the configured rate where one is enough, else by both."""
    single = []
    if sum(thing.colour == target.colour for thing in things) == 1:
        single.append(f"{target.colour} {random.choice(NOUNS)}")
    if sum(thing.shape == target.shape for thing in things) == 1:
        single.append(target.shape)
    if single and random.random() < config.single_attribute:
        return random.choice(single)
    return target.name


def _counted(config: SyntheticScenesConfig, things: Sequence[Thing], random: Random) -> tuple[str, list[Thing]]:
    """What to count, by colour, by shape or (one time in five) by both, and the objects that answer it.

    Three times in five the attributes are those of an object in the picture, so that 0 is not the usual answer.
    """
    present = random.random() < 0.6
    example = random.choice(things)
    colour = example.colour if present else random.choice(COLOURS)
    shape = example.shape if present else random.choice(SHAPES)
    form = random.choice(("colour", "colour", "shape", "shape", "both"))
    if form == "both" and Thing(colour, shape, 0, 0, 1).held_out and config.combinations == "training":
        form = "colour"  # a pair never shown would only teach that its count is 0
    if form == "colour":
        return f"{colour} {random.choice(NOUNS)}s", [thing for thing in things if thing.colour == colour]
    if form == "shape":
        return PLURALS[shape], [thing for thing in things if thing.shape == shape]
    return f"{colour} {PLURALS[shape]}", [thing for thing in things if thing.pair == (colour, shape)]
