"""What every box tokenizer must do: write boxes and points that it reads back, and never guess."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from fusionkit.errors import BoxDecodeError
from fusionkit.geometry import Box, Point, Size
from fusionkit.plugin import BlockSite
from fusionkit.testing.subjects import CheckFailed, Subject, require

SIZES = (Size(48, 48), Size(640, 480), Size(333, 1000), Size(1, 7))


def check_vocabulary(subject: Subject) -> None:
    """Added tokens are unique and not empty; coordinate tokens are among them."""
    tokenizer = _make(subject)
    vocabulary, coordinates = tokenizer.vocabulary(), tokenizer.coordinates()
    require(len(set(vocabulary)) == len(vocabulary), "vocabulary() names a token twice")
    require(all(token.strip() for token in vocabulary), "vocabulary() holds an empty token")
    require(set(coordinates) <= set(vocabulary), "coordinates() holds tokens that vocabulary() does not")


def check_writes_what_it_reads(subject: Subject) -> None:
    """What is read back writes the same text again, in the same number, inside the picture."""
    tokenizer = _make(subject)
    for size, boxes, points in _cases():
        text = tokenizer.encode([*boxes, *points], size)
        parsed = tokenizer.parse(text, size, strict=True)
        require(not parsed.malformed, f"its own text is malformed: {parsed.malformed}")
        counts = (len(parsed.boxes), len(parsed.points))
        require(counts == (len(boxes), len(points)), f"{len(boxes)} boxes and {len(points)} points read as {counts}")
        again = tokenizer.encode([*parsed.boxes, *parsed.points], size)
        require(again == text, f"read and written again, {text!r} became {again!r} for a picture of {size}")
        for box in parsed.boxes:
            inside = 0 <= box.x0 <= box.x1 <= size.width and 0 <= box.y0 <= box.y1 <= size.height
            require(inside, f"{box} lies outside a picture of {size}")


def check_finds_them_in_text(subject: Subject) -> None:
    """Boxes and points are found among words; words alone are neither boxes nor malformed ones."""
    tokenizer, size = _make(subject), Size(100, 80)
    text = tokenizer.encode(Box(10, 10, 50, 60), size)
    parsed = tokenizer.parse(f"it is here: {text}, I think", size)
    require(len(parsed.boxes) == 1, f"one box among words reads as {len(parsed.boxes)}")
    plain = tokenizer.parse("there is nothing to see", size)
    require(not (plain.boxes or plain.points or plain.malformed), f"plain words read as {plain}")


def check_malformed_text_is_reported(subject: Subject) -> None:
    """A box cut short is reported, not guessed; strict parsing raises BoxDecodeError."""
    tokenizer, size = _make(subject), Size(100, 80)
    vocabulary = tokenizer.vocabulary()
    if not vocabulary:
        return
    broken = vocabulary[0]
    parsed = tokenizer.parse(broken, size)
    require(not parsed.boxes and not parsed.points, f"{broken!r} alone reads as {parsed}")
    require(bool(parsed.malformed), f"{broken!r} alone is not reported as malformed")
    try:
        tokenizer.parse(broken, size, strict=True)
    except BoxDecodeError:
        return
    raise CheckFailed(f"strict parsing accepts {broken!r}")


def check_box_round_trip(subject: Subject) -> None:
    """Every coordinate comes back within `tolerance(size)`."""
    tokenizer = _make(subject)
    for size, boxes, points in _cases():
        across, down = tokenizer.tolerance(size)
        for one in [*boxes, *points]:  # one by one: a format may put the items of a list in an order of its own
            parsed = tokenizer.parse(tokenizer.encode(one, size), size)
            found = [*parsed.boxes, *parsed.points]
            require([type(other) for other in found] == [type(one)], f"{one} came back as {found}")
            for axis, allowed in (("x", across), ("y", down)):
                error = max(
                    abs(getattr(one, name) - getattr(found[0], name))
                    for name in (f"{axis}0", f"{axis}1", axis)
                    if hasattr(one, name)
                )
                require(
                    error <= allowed * (1 + 1e-9), f"{one} came back as {found[0]}: off by {error}, stated {allowed}"
                )


BOX_TOKENIZER_CHECKS = (
    check_vocabulary,
    check_writes_what_it_reads,
    check_finds_them_in_text,
    check_malformed_text_is_reported,
)
BOX_TOKENIZER_GUARANTEES: dict[str, Callable[[Subject], None]] = {"box_round_trip": check_box_round_trip}


def _make(subject: Subject):  # type: ignore[no-untyped-def]  # a plugin's own class
    return subject.make(BlockSite(address="box_tokenizer"))


def _cases() -> Iterator[tuple[Size, list[Box], list[Point]]]:
    draw = random.Random(0)
    for size in SIZES:
        corners = [Box(0, 0, size.width, size.height), Box(0, 0, 0, 0)]
        boxes = [_box(draw, size) for _ in range(20)]
        points = [Point(draw.uniform(0, size.width), draw.uniform(0, size.height)) for _ in range(10)]
        yield size, corners + boxes, [Point(0, 0), Point(size.width, size.height), *points]


def _box(draw: random.Random, size: Size) -> Box:
    x0, x1 = sorted(draw.uniform(0, size.width) for _ in range(2))
    y0, y1 = sorted(draw.uniform(0, size.height) for _ in range(2))
    return Box(x0, y0, x1, y1)
