"""A dataset block for tests: samples with one picture, with none and with two, so that every batch is different."""

from __future__ import annotations

from typing import Literal

from PIL import Image

from fusionkit.plugin import API_VERSION, BlockSite, BlockSpec, DatasetConfig, Provenance, Sample, Size, Turn

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")


class MixedConfig(DatasetConfig):
    """Which samples have pictures: 1, 0, 2, 1, 1, 0, 0, 2, ..."""

    type: Literal["test.mixed"] = "test.mixed"


class Mixed:
    """64 samples; the answer to a question about colour is the colour of the first picture."""

    label_names: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(self, config: MixedConfig, site: BlockSite | None = None) -> None:
        pass

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Sample:
        pictures = (1, 0, 2, 1, 1, 0, 0, 2)[index % 8]
        colour = COLOURS[index % len(COLOURS)]
        turn = Turn("what colour is it", (colour,)) if pictures else Turn("count red", (str(index % 5),))
        opened = [lambda each=each: Image.new("RGB", (24, 24), COLOURS[(index + each) % 6]) for each in range(pictures)]
        return Sample(
            opened[0] if opened else None,
            Size(24, 24) if opened else None,
            (turn,),
            Provenance("mixed", index),
            more=tuple(opened[1:]),
        )


MIXED = BlockSpec(
    api=API_VERSION, family="datasets", config=MixedConfig, factory="mixed_samples:Mixed", summary="Mixed samples."
)
