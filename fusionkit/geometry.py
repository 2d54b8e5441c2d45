"""Where tokens and boxes are: grids, frames, token and layer-stack shapes. Pure arithmetic, no libraries.

Conventions: grids are (height, width) and row-major; pixels are (x, y) with the origin at the top-left corner of
the image; a box is (x0, y0, x1, y1) with x1 and y1 exclusive edges, so a full image is (0, 0, width, height).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby

from fusionkit.errors import DataError, ShapeError


@dataclass(frozen=True, slots=True)
class Grid:
    """A row-major grid of tokens, `height` x `width`."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ShapeError(f"grid {self.height}x{self.width}: both sides must be at least 1")

    @property
    def tokens(self) -> int:
        return self.height * self.width

    def pooled(self, window: tuple[int, int]) -> Grid:
        """The grid after non-overlapping windows (rows, columns); raises ShapeError if they do not tile."""
        rows, columns = window
        if rows < 1 or columns < 1 or self.height % rows or self.width % columns:
            raise ShapeError(f"window {rows}x{columns} does not tile the grid {self}")
        return Grid(self.height // rows, self.width // columns)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of its crop that a grid covers, in coordinates of the crop (0 at one side, 1 at the other)."""

    x0: float = 0.0
    y0: float = 0.0
    x1: float = 1.0
    y1: float = 1.0

    def cell_centres(self, grid: Grid) -> Iterator[tuple[float, float]]:
        """(y, x) of every cell's centre, row-major."""
        for row in range(grid.height):
            for column in range(grid.width):
                yield (
                    self.y0 + (row + 0.5) / grid.height * (self.y1 - self.y0),
                    self.x0 + (column + 0.5) / grid.width * (self.x1 - self.x0),
                )


FULL = Frame()


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """The planned shape of tokens x_BND: a grid, a width D, and the frame the grid covers.

    `copies` > 1 says that several grids stand on the token axis: one after the other (concat), or, if `interleaved`,
    cell by cell: the first cell of each, the second of each, and so on.
    """

    grid: Grid
    width: int
    frame: Frame = FULL
    copies: int = 1
    interleaved: bool = False

    @property
    def tokens(self) -> int:
        return self.grid.tokens * self.copies

    def with_width(self, width: int) -> TokenSpec:
        return replace(self, width=width)

    def with_grid(self, grid: Grid) -> TokenSpec:
        return replace(self, grid=grid)

    def __str__(self) -> str:
        copies = f"{self.copies}x" if self.copies > 1 else ""
        return f"{copies}{self.grid} tokens of width {self.width}"


@dataclass(frozen=True, slots=True)
class LayerStackSpec:
    """The planned shape of an encoder's selected layers: one x_BND per entry of `layers`, all on one grid."""

    layers: tuple[int, ...]
    grid: Grid
    width: int
    frame: Frame = FULL

    def __post_init__(self) -> None:
        if not self.layers:
            raise ShapeError("a layer stack needs at least one layer, got none")
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ShapeError(f"layers must be sorted, unique and not negative, got {list(self.layers)}")

    @property
    def depth(self) -> int:
        """How many layers are in the stack (not the encoder's depth)."""
        return len(self.layers)

    @property
    def tokens(self) -> TokenSpec:
        """The shape of one layer."""
        return TokenSpec(self.grid, self.width, self.frame)

    def __str__(self) -> str:
        return f"{self.depth} layers of {self.grid} tokens of width {self.width}"


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a picture in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Point:
    """A point in pixels of the original image."""

    x: float
    y: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the original image: left, top, right and bottom edges."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""

    @property
    def area(self) -> float:
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)

    @property
    def centre(self) -> Point:
        return Point((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2, self.label)

    def iou(self, other: Box) -> float:
        """Intersection over union; 0 when both boxes are empty."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        shared = max(0.0, width) * max(0.0, height)
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    def contains(self, point: Point) -> bool:
        return self.x0 <= point.x <= self.x1 and self.y0 <= point.y <= self.y1


@dataclass(frozen=True, slots=True)
class Mask:
    """The pixels of a picture that an object covers, as lengths of runs in reading order: outside, inside, outside, ...

    Raises DataError when the runs do not fill the picture.

    Example: `Mask.of_rows([[False, True], [True, False]]).runs == (1, 2, 1)`
    """

    size: Size
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(run < 0 for run in self.runs) or sum(self.runs) != self.size.width * self.size.height:
            raise DataError(f"mask: runs of {sum(self.runs)} pixels, expected those of a {self.size} picture")

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[bool]]) -> Mask:
        """From rows of truth values, one per pixel; raises DataError when they are not of equal length, or none."""
        if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
            raise DataError("mask: expected rows of truth values, all of one length")
        runs = [(bool(value), len(list(run))) for value, run in groupby(chain.from_iterable(rows), key=bool)]
        lengths = tuple(length for _, length in runs)
        return cls(Size(len(rows[0]), len(rows)), (0, *lengths) if runs[0][0] else lengths)

    def contains(self, point: Point) -> bool:
        """Whether the pixel under a point is covered; the right and bottom edges belong to the last pixels."""
        width, height = self.size.width, self.size.height
        if not (0 <= point.x <= width and 0 <= point.y <= height):
            return False
        place = min(int(point.y), height - 1) * width + min(int(point.x), width - 1)
        return next(number for number, end in enumerate(accumulate(self.runs)) if place < end) % 2 == 1
