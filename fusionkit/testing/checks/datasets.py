"""What every dataset must do: give the same samples each time, whole, with their provenance."""

from __future__ import annotations

from typing import Any

from fusionkit.geometry import Box, Point
from fusionkit.plugin import BlockSite
from fusionkit.testing.subjects import CheckFailed, Subject, require

KINDS = ("box", "point", "count", "describe", "free")


def check_length_and_indexing(subject: Subject) -> None:
    """len() says how many there are; every index below it works and the next does not."""
    data = _make(subject)
    require(len(data) > 0, "the dataset is empty")
    _sample(data, len(data) - 1)
    try:
        data[len(data)]
    except (IndexError, LookupError):
        return
    raise CheckFailed(f"index {len(data)} of {len(data)} samples gives a sample")


def check_repeatable(subject: Subject) -> None:
    """Two instances, and two readings of one index in any order, give equal samples and pixels."""
    first, second = _make(subject), _make(subject)
    indices = range(min(4, len(first)))
    expected = [_contents(first[index]) for index in indices]
    found = [_contents(second[index]) for index in reversed(indices)][::-1]
    require(found == expected, "samples differ between two instances of one config")


def check_samples_are_whole(subject: Subject) -> None:
    """Turns have a question, an answer and a known kind; boxes and points lie in the picture of the stated size."""
    data = _make(subject)
    for index in range(min(4, len(data))):
        sample = _sample(data, index)
        require((sample.open_image is None) == (sample.size is None), f"sample {index}: picture and size go together")
        if sample.open_image is not None:
            image = sample.open_image()
            require(image.mode == "RGB", f"sample {index}: picture is {image.mode}, expected RGB")
            size = (sample.size.width, sample.size.height)
            require(image.size == size, f"sample {index}: picture is {image.size}, size says {size}")
        for turn in sample.turns:
            require(bool(turn.question.strip()), f"sample {index}: an empty question")
            require(bool(turn.answer), f"sample {index}: no answer to {turn.question!r}")
            require(turn.kind in KINDS, f"sample {index}: kind {turn.kind!r}, expected one of {', '.join(KINDS)}")
            for segment in turn.answer:
                require(_inside(segment, sample), f"sample {index}: {segment} lies outside {sample.size}")


def check_provenance(subject: Subject) -> None:
    """Samples say where they are from, each something else."""
    data = _make(subject)
    places = [str(_sample(data, index).provenance) for index in range(min(8, len(data)))]
    require(all(places), "a sample's provenance is empty")
    require(len(set(places)) == len(places), f"samples share a provenance: {places}")


def check_label_names(subject: Subject) -> None:
    """label_names maps each label of the objects to its possible values."""
    data = _make(subject)
    names = data.label_names
    for index in range(min(4, len(data))):
        for thing in _sample(data, index).objects:
            for label, value in thing.labels.items():
                require(label in names, f"sample {index}: label '{label}' is not in label_names")
                require(value in names[label], f"sample {index}: '{value}' is not a value of '{label}'")


DATASET_CHECKS = (
    check_length_and_indexing,
    check_repeatable,
    check_samples_are_whole,
    check_provenance,
    check_label_names,
)


def _make(subject: Subject) -> Any:
    return subject.make(BlockSite(address="train.data"))


def _sample(data: Any, index: int) -> Any:
    sample = data[index]
    require(bool(sample.turns), f"sample {index} has no turn")
    return sample


def _contents(sample: Any) -> tuple[Any, ...]:
    pixels = sample.open_image().tobytes() if sample.open_image is not None else b""
    return (sample.size, sample.turns, str(sample.provenance), repr(sample.objects), pixels)


def _inside(segment: Any, sample: Any) -> bool:
    if isinstance(segment, Box):
        return bool(0 <= segment.x0 <= segment.x1 <= sample.size.width) and bool(
            0 <= segment.y0 <= segment.y1 <= sample.size.height
        )
    if isinstance(segment, Point):
        return bool(0 <= segment.x <= sample.size.width) and bool(0 <= segment.y <= sample.size.height)
    return True
