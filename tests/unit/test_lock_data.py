"""What a lock says of data: every file and folder that the datasets of a recipe name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_recipe import recipe

import fusionkit
from fusionkit.errors import DataError, UsageError
from fusionkit.recipe import Recipe, lock_data
from fusionkit.recipe.lock import lock
from fusionkit.recipe.lock_data import data_hashes
from fusionkit.train.partial import reopen, start

Change = Callable[[Path], Any]


def reading(data: dict[str, Any]) -> Recipe:
    stages = {"answers": {"steps": 1, "trainable": ["fusion"]}}
    train = {"learning_rates": {"fusion": 1e-3}, "stages": stages, "data": [data]}
    return fusionkit.load_recipe(recipe(train=train))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "data"
    (where / "images").mkdir(parents=True)
    (where / ".cache").mkdir()
    (where / "rows.parquet").write_bytes(b"one")
    (where / "images" / "a.png").write_bytes(b"picture")
    (where / ".cache" / "tool.lock").write_bytes(b"")
    return where


def of(folder: Path, **settings: Any) -> str:
    columns = {"question": "q", "answer": "a"}
    found = data_hashes(reading({"type": "hugging_face", "path": str(folder), "columns": columns, **settings}))
    assert list(found) == [str(folder)]
    return found[str(folder)]


def test_a_file_is_its_content(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    found = lock(reading({"type": "jsonl", "path": str(rows)}))["run"]["data"]
    assert found == {str(rows): f"sha256:{hashlib.sha256(rows.read_bytes()).hexdigest()}"}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "rows.parquet").write_bytes(b"two"),
        lambda folder: (folder / "rows.parquet").rename(folder / "others.parquet"),
        lambda folder: (folder / "more.jsonl").write_text("{}"),
        lambda folder: (folder / "images" / "a.png").unlink(),
        lambda folder: (folder / "images" / "a.png").write_bytes(b"a longer picture"),
        lambda folder: (folder / "images" / "b.png").write_bytes(b""),
    ],
    ids=["content", "name", "new", "gone", "picture", "new_picture"],
)
def test_a_folder_is_the_names_and_contents_of_its_files(folder: Path, change: Change) -> None:
    before = of(folder)
    assert before.startswith("sha256:")
    change(folder)
    assert of(folder) != before


def test_long_text_is_no_file(folder: Path) -> None:
    data = {"type": "hugging_face", "path": "", "ask": "long " * 1000, "columns": {"answer": "a"}}
    assert list(data_hashes(reading(data | {"path": str(folder)}))) == [str(folder)]


def test_what_tools_leave_in_a_folder_is_no_data(folder: Path) -> None:
    before = of(folder)
    (folder / ".cache" / "other.lock").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "images" / "round").symlink_to(folder)
    assert of(folder) == before


def test_linked_folders_count(folder: Path, tmp_path: Path) -> None:
    before = of(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.jsonl").write_text("{}")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert of(folder) != before


def test_fetched_pictures_do_not_change_it_but_rows_do(folder: Path) -> None:
    (folder / "cap.jsonl").write_text("{}")

    def hashed(**settings: Any) -> str:
        return data_hashes(reading({"type": "pixmo", "root": str(folder), "parts": ["cap"], **settings}))[str(folder)]

    before, fetching = hashed(), hashed(fetch=True)
    (folder / "images" / hashlib.sha256(b"address").hexdigest()).write_bytes(b"fetched")
    assert hashed(fetch=True) == fetching
    assert hashed() != before
    (folder / "cap.jsonl").write_text("{ }")
    assert hashed(fetch=True) != fetching


def test_large_tables_are_known_by_size_beginning_and_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_data, "LARGE", 16)
    monkeypatch.setattr(lock_data, "CHUNK", 4)
    table = folder / "large.parquet"
    contents = [b"head" + b"." * 12 + b"tail", b"HEAD" + b"." * 12 + b"tail", b"head" + b"." * 12 + b"TAIL", b"." * 21]
    found = []
    for content in contents:
        table.write_bytes(content)
        found.append(of(folder))
    assert len(set(found)) == len(found)


def test_contents_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(folder)
    monkeypatch.setattr(Path, "open", None)
    assert of(folder) == before


def test_which_folders_the_datasets_name(tmp_path: Path) -> None:
    for name in ("refcoco", "other", "photos", "coco/images"):
        (tmp_path / name).mkdir(parents=True)
    at = {name: str(tmp_path / name) for name in ("refcoco", "other", "photos", "coco")}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"type": "refcoco", "root": at["refcoco"], "split": "train"}, [at["refcoco"]]),
        (
            {"type": "refcoco", "root": at["refcoco"], "images": at["other"], "split": "train"},
            [at["refcoco"], at["other"]],
        ),
        ({"type": "synthetic_scenes", "photographs": at["photos"]}, [at["photos"]]),
        ({"type": "synthetic_scenes"}, []),
        ({"type": "coco_boxes", "annotations": f"{at['coco']}/instances.json"}, [f"{at['coco']}/images"]),
        ({"type": "llava", "path": "rows.json", "images": at["other"]}, [at["other"]]),
    ]
    for config, expected in cases:
        assert list(data_hashes(reading(config))) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "rows.parquet").chmod(0)
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read, which the lock needs"):
        of(folder)


def test_a_run_is_not_resumed_on_another_folder(folder: Path, tmp_path: Path) -> None:
    columns = {"question": "q", "answer": "a"}
    loaded = reading({"type": "hugging_face", "path": str(folder), "columns": columns})
    start(loaded, tmp_path / "run", overwrite=False)
    reopen(loaded, tmp_path / "run")
    (folder / "rows.parquet").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"the data of this run has changed since it was started: .*data"):
        reopen(loaded, tmp_path / "run")
