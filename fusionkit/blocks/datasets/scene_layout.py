"""Placing the objects of a scene: which pairs, how large, where, in front of what. Torch- and numpy-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fusionkit.blocks.datasets.scene_words import HELD_OUT_PAIRS, Pair, pairs
from fusionkit.blocks.datasets.specs import SyntheticScenesConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box

FILLS = ("plain", "stripes", "dots", "checks")
_PLACES_TRIED = 60
_LAYOUTS_TRIED = 200


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene; `x`, `y`, `side` in whole pixels, so its box is exact."""

    colour: str
    shape: str
    x: int
    y: int
    side: int
    fill: str = "plain"

    @property
    def pair(self) -> Pair:
        return (self.colour, self.shape)

    @property
    def held_out(self) -> bool:
        return self.pair in HELD_OUT_PAIRS

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> Box:
        """The full extent, covered parts included, labelled with the name."""
        return Box(self.x, self.y, self.x + self.side, self.y + self.side, self.name)


def lay_out(config: SyntheticScenesConfig, random: Random, where: str) -> tuple[Thing, ...]:
    """Objects from back to front, at least one of which can be referred to without ambiguity.

    Raises DataError when the objects do not fit the picture after many attempts.
    """
    for _ in range(_LAYOUTS_TRIED):
        chosen = _choose_pairs(config, random)
        if not askable(chosen, config.combinations == "held_out"):
            continue
        things = _place(config, chosen, random)
        if things is not None:
            return things
    raise DataError(
        f"{where}: {config.objects} objects of {config.object_size} of the side do not fit a picture with overlap "
        f"{config.overlap}; lower objects or object_size, or raise overlap"
    )


def askable(chosen: Sequence[Pair], held_out_only: bool) -> list[int]:
    """Indices of the objects whose colour and shape together are unique (and held out, if only those may be asked)."""
    return [
        index
        for index, pair in enumerate(chosen)
        if chosen.count(pair) == 1 and (pair in HELD_OUT_PAIRS or not held_out_only)
    ]


def _choose_pairs(config: SyntheticScenesConfig, random: Random) -> list[Pair]:
    number = config.objects if isinstance(config.objects, int) else random.randint(*config.objects)
    allowed = pairs(config.combinations)
    chosen = [random.choice(allowed) for _ in range(number)]
    if config.combinations == "held_out":
        chosen[random.randrange(number)] = random.choice(HELD_OUT_PAIRS)
    return chosen


def _place(config: SyntheticScenesConfig, chosen: Sequence[Pair], random: Random) -> tuple[Thing, ...] | None:
    """Place objects one after the other, trying smaller sides as places run out; None when one does not fit."""
    least, most = (round(share * config.size) for share in config.object_size)
    placed: list[Thing] = []
    covered: list[float] = []  # how much of each placed object's box later ones cover
    for colour, shape in chosen:
        side = random.randint(least, most)
        for attempt in range(_PLACES_TRIED):
            if attempt and attempt % 10 == 0:
                side = max(least, side - (most - least + 4) // 5)
            x, y = random.randint(0, config.size - side), random.randint(0, config.size - side)
            added = [_shared_area(thing, x, y, side) / thing.side**2 for thing in placed]
            if all(old + new <= config.overlap for old, new in zip(covered, added, strict=True)):
                break
        else:
            return None
        covered = [old + new for old, new in zip(covered, added, strict=True)] + [0.0]
        fill = random.choice(FILLS[1:]) if random.random() < config.textures else FILLS[0]
        placed.append(Thing(colour, shape, x, y, side, fill))
    return tuple(placed)


def _shared_area(thing: Thing, x: int, y: int, side: int) -> int:
    width = min(thing.x + thing.side, x + side) - max(thing.x, x)
    height = min(thing.y + thing.side, y + side) - max(thing.y, y)
    return max(0, width) * max(0, height)
