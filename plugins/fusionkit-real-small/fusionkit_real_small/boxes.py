"""Boxes that follow from the pixels of a picture: no annotation, the same on every machine.

All boxes are pixels of the picture, x to the right and y down.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusionkit.plugin import Box, DataError

Grey = np.ndarray[Any, np.dtype[np.uint8]]

COIN_LEVELS = (30, 150)
"""Grey values that are surely background, and surely coin."""

LEAST_COIN = 400
"""Pixels; smaller pieces of the watershed are specks of light."""


def coins(grey_HW: Grey) -> tuple[Box, ...]:
    """The 24 coins of scikit-image's `coins`, row by row: watershed of the Sobel gradient from sure marks."""
    from scipy import ndimage
    from skimage import filters, segmentation

    marks_HW = np.zeros(grey_HW.shape, dtype=np.int32)
    marks_HW[grey_HW < COIN_LEVELS[0]] = 1
    marks_HW[grey_HW > COIN_LEVELS[1]] = 2
    coin_HW = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(grey_HW), marks_HW) == 2)
    pieces_HW, _ = ndimage.label(coin_HW)
    boxes = [
        _box(rows, columns)
        for number, (rows, columns) in enumerate(ndimage.find_objects(pieces_HW), start=1)
        if (pieces_HW[rows, columns] == number).sum() >= LEAST_COIN
    ]
    # Row by row: the coins lie in rows that hardly tilt, 60 px apart or more.
    boxes.sort(key=lambda box: box.y0 + box.y1)
    in_rows: list[list[Box]] = []
    for box in boxes:
        if not in_rows or box.y0 + box.y1 - in_rows[-1][-1].y0 - in_rows[-1][-1].y1 > 50:
            in_rows.append([])
        in_rows[-1].append(box)
    return tuple(box for row in in_rows for box in sorted(row, key=lambda box: box.x0))


def face(rgb_HWC: Grey, cascade: str) -> Box:
    """The one face a local-binary-pattern cascade (the XML file that scikit-image ships) finds; raises DataError."""
    from skimage.feature import Cascade

    found = Cascade(cascade).detect_multi_scale(
        img=rgb_HWC, scale_factor=1.2, step_ratio=1, min_size=(60, 60), max_size=(123, 123)
    )
    if len(found) != 1:
        raise DataError(f"{cascade}: found {len(found)} faces, expected one")
    x, y, width, height = (int(found[0][key]) for key in ("c", "r", "width", "height"))
    return Box(x, y, x + width, y + height)


def silhouette(grey_HW: Grey) -> Box:
    """The extent of what is dark on a white ground."""
    rows, columns = np.nonzero(grey_HW < 128)
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def _box(rows: slice, columns: slice) -> Box:
    return Box(columns.start, rows.start, columns.stop, rows.stop)
