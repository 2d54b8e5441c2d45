"""Rows in parquet files; those tests that read one need pyarrow, which is an extra."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionkit.blocks.datasets.pixmo import Pixmo
from fusionkit.blocks.datasets.refcoco import Refcoco
from fusionkit.blocks.datasets.rows import open_rows
from fusionkit.blocks.datasets.specs import PixmoConfig, RefcocoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.sample import Turn


def write(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, "PNG")
    return buffer.getvalue()


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        DataError,
        match=r"a\.parquet: reading parquet needs pyarrow; install it with `pip install 'fusionkit\[parquet\]'`",
    ):
        open_rows(tmp_path / "a.parquet", "this")


def test_rows_are_numbered_through_row_groups_and_travel(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "a.parquet", [{"n": n} for n in range(5)]), "this")
    assert [rows.row(index) for index in (4, 0, 3, 1, 2)] == [{"n": n} for n in (4, 0, 3, 1, 2)]
    assert rows.where(4) == f"{tmp_path / 'a.parquet'}:5"
    again = pickle.loads(pickle.dumps(rows))
    assert (len(again), again.row(3)) == (5, {"n": 3})


def test_broken_files_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "a.parquet", [{"n": n} for n in range(5)])
    with pytest.raises(DataError, match=r"none\.parquet: no such file; this needs a file of rows"):
        open_rows(tmp_path / "none.parquet", "this")
    (tmp_path / "b.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"b\.parquet: not a parquet file that can be read"):
        open_rows(tmp_path / "b.parquet", "this")
    content = bytearray(good.read_bytes())
    content[4:24] = bytes(20)
    (tmp_path / "c.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.parquet:1: cannot be read"):
        open_rows(tmp_path / "c.parquet", "this").row(0)
    with pytest.raises(DataError, match="no rows"):
        open_rows(write(tmp_path / "d.parquet", [{"n": 1}][:0] or [], 1), "this")


def test_pixmo_reads_the_released_forms(tmp_path: Path) -> None:
    image = {"bytes": png(30, 20), "path": "a.png"}
    docs = [{"image": image, "questions": {"question": ["Q?"], "answer": ["A"]}}]
    write(tmp_path / "docs" / "train-00000-of-00001.parquet", docs)
    write(tmp_path / "docs" / "validation-00000-of-00001.parquet", docs * 3)
    write(tmp_path / "points.parquet", [{"label": "cats", "points": [{"x": 50.0, "y": 50.0}], "image": image}])
    dataset = Pixmo(PixmoConfig(root=str(tmp_path), parts=("docs", "points")))
    assert [len(dataset), dataset[0].size] == [5, Size(30, 20)]
    assert dataset[0].turns == (Turn("Q?", ("A",)),)
    assert dataset[4].turns == (Turn("Point to cats.", (Point(15, 10),), "point"),)
    assert str(dataset[2].provenance) == f"{tmp_path / 'docs' / 'validation-00000-of-00001.parquet'}:2"
    opened = pickle.loads(pickle.dumps(dataset))[4].open_image
    assert opened is not None
    assert opened().size == (30, 20)
    assert len(Pixmo(PixmoConfig(root=str(tmp_path), parts=("docs",), split="train"))) == 1
    with pytest.raises(DataError, match=r"docs: no test-\*\.parquet in this folder"):
        Pixmo(PixmoConfig(root=str(tmp_path), parts=("docs",), split="test"))
    write(tmp_path / "cap.parquet", [{"caption": "x", "image": {"bytes": b"no picture", "path": ""}}])
    with pytest.raises(DataError, match=r"cap\.parquet:1: .*not a picture"):
        Pixmo(PixmoConfig(root=str(tmp_path), parts=("cap",)))[0]


def test_refcoco_reads_its_rows(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "one.jpg")
    row = {"split": "val", "sentences": [{"sent": "cat"}], "file_name": "one.jpg", "bbox": [1.0, 2.0, 10.0, 20.0]}
    write(tmp_path / "refs.parquet", [row])
    dataset = Refcoco(RefcocoConfig(root=str(tmp_path), split="val", boxes="xywh"))
    assert dataset[0].turns == (Turn("Locate cat.", (Box(1, 2, 11, 22),), "box", ("val",)),)
