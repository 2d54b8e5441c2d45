"""The dataset `hugging_face`: what it reads through the library datasets, and one clear line for everything it does not."""

from __future__ import annotations

import io
import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from fusionkit.blocks.datasets.hugging_face import HuggingFace
from fusionkit.blocks.datasets.specs import HuggingFaceConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Point, Size
from fusionkit.sample import Sample, Turn

VQA = {"image": "image", "question": "question", "answer": "answer"}


def png(width: int, height: int, colour: str = "navy", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG", **options)
    return buffer.getvalue()


def table(*rows: dict[str, Any], classes: dict[str, list[str]] | None = None, pictures: tuple[str, ...] = ()) -> Any:
    """The rows as a `datasets.Dataset`."""
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(list(rows))
    features = made.features.copy()
    for name, names in (classes or {}).items():
        features[name] = datasets.ClassLabel(names=names)
    for name in pictures:
        is_list = type(features[name]).__name__ == "List"
        features[name] = datasets.List(datasets.Image()) if is_list else datasets.Image()
    return made.cast(features)


def saved(folder: Path, made: Any) -> str:
    made.save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def opened(path: Any, columns: dict[str, str], **settings: Any) -> HuggingFace:
    pytest.importorskip("datasets")
    return HuggingFace(HuggingFaceConfig(path=str(path), columns=columns, **settings))  # type: ignore[arg-type]


def only(folder: Path, row: dict[str, Any], columns: dict[str, str], **settings: Any) -> Sample:
    """The sample of a table with one row; `image` is a picture."""
    pictures = tuple(name for name in ("image", "images") if row.get(name))
    return opened(saved(folder, table(row, pictures=pictures)), columns, **settings)[0]


def shown(size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    return {"bytes": png(*size), "path": None}


# ------------------------------------------------------------------------------------------------- where it reads
def test_a_folder_of_parquet_with_splits(tmp_path: Path) -> None:
    made = table({"image": shown(), "question": "What?", "answer": "A bus."}, pictures=("image",))
    (tmp_path / "data").mkdir()
    for split, copies in (("train", 3), ("test", 1)):
        rows = made.select([0] * copies)
        rows.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    train = opened(tmp_path, VQA, split="train")
    assert len(train) == 3
    assert train[2].turns == (Turn("What?", ("A bus.",), "free"),)
    assert train[2].size == Size(64, 48)
    assert train[2].open_image().size == (64, 48)
    assert str(train[2].provenance) == f"{tmp_path} train:3"
    assert len(opened(tmp_path, VQA, split="train[:2]")) == 2
    with pytest.raises(DataError, match=r"several splits: train, test; choose one with `split: train`"):
        opened(tmp_path, VQA)
    with pytest.raises(
        DataError, match=r"cannot be read: Unknown split \"val\"\. Should be one of \['train', 'test'\]"
    ):
        opened(tmp_path, VQA, split="val")


def test_what_save_to_disk_wrote_one_split_or_several(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = table({"question": "q", "answer": 3})
    folder = saved(tmp_path, datasets.DatasetDict({"train": made, "val": made.select([0, 0])}))
    columns = {"question": "question", "answer": "answer"}
    assert len(opened(folder, columns, split="val")) == 2
    assert opened(folder, columns, split="train")[0].turns == (Turn("q", ("3",), "count"),)
    with pytest.raises(DataError, match="no split `dev`; there are train, val"):
        opened(folder, columns, split="dev")
    with pytest.raises(DataError, match="several splits: train, val; choose one"):
        opened(folder, columns)
    with pytest.raises(DataError, match="has no configurations; leave `name` out"):
        opened(folder, columns, split="val", name="default")
    with pytest.raises(DataError, match="is a folder here; only hub ids have a revision"):
        opened(folder, columns, split="val", revision="main")


def test_a_folder_of_pictures_with_their_metadata_and_classes(tmp_path: Path) -> None:
    for kind, size in (("cat", (30, 20)), ("dog", (20, 30))):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "1.png").write_bytes(png(*size))
    data = opened(tmp_path, {"image": "image", "answer": "label"}, ask="Which animal is it?", split="train")
    assert [sample.turns[0] for sample in data] == [Turn("Which animal is it?", (kind,)) for kind in ("cat", "dog")]
    assert [sample.size for sample in data] == [Size(30, 20), Size(20, 30)]
    assert data[0].path.endswith("cat/1.png")


def test_files_of_rows_whose_pictures_are_file_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(10, 12))
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "a.png", "question": "q", "answer": "a"}]))
    (tmp_path / "rows.csv").write_text("image,question,answer\na.png,q,a\n,q,a\n")
    assert opened(tmp_path / "rows.json", VQA)[0].size == Size(10, 12)
    data = opened(tmp_path / "rows.csv", VQA)
    assert [sample.size for sample in data] == [Size(10, 12), None]
    (tmp_path / "rows.xml").write_text("<rows/>")
    with pytest.raises(
        DataError, match=r"rows\.xml: cannot be read; expected a folder, or a file ending with \.parquet"
    ):
        opened(tmp_path / "rows.xml", VQA)
    (tmp_path / "broken.jsonl").write_text('{"image": "a.png"}\n{"image": \n')
    with pytest.raises(DataError, match=r"broken\.jsonl: cannot be read: .*JSON parse error"):
        opened(tmp_path / "broken.jsonl", VQA)
    (tmp_path / "gone.jsonl").write_text('{"image": "none.png", "question": "q", "answer": "a"}\n')
    with pytest.raises(DataError, match=r"gone\.jsonl:1: .*none\.png"):
        opened(tmp_path / "gone.jsonl", VQA)[0]


def test_a_hub_id_that_cannot_be_had_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError,
        match=r"someone/vqa: no such file or folder, and as an id of the hub it cannot be had: HF_HUB_OFFLINE is set; "
        "run once with a network, or give the path of a folder",
    ):
        opened("someone/vqa", VQA, split="train")
    with pytest.raises(DataError, match=r"someone/vqa: no such file or folder; as an id of the hub it needs `split`"):
        opened("someone/vqa", VQA)
    with pytest.raises(DataError, match=r"^no/such/folder: no such file or folder$"):
        opened("no/such/folder", VQA, split="train")


def test_without_a_network_nothing_is_tried_again_and_again(unreachable_hub: Path) -> None:
    pytest.importorskip("datasets")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"huggingface\.co cannot be reached \(.*Name or service not known\)"):
        opened("someone/vqa", VQA, split="train")
    assert time.monotonic() - started < 5


def test_what_the_library_kept_of_a_hub_id_is_read_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: dict[str, Any] = {}

    def load(path: str, name: str | None, **settings: Any) -> Any:
        asked.update(path=path, name=name, offline=datasets.config.HF_HUB_OFFLINE, **settings)
        return table({"question": "q", "answer": "a"})

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = opened(
        "someone/vqa", {"question": "question", "answer": "answer"}, split="test", name="small", revision="abc"
    )
    assert asked == {"path": "someone/vqa", "name": "small", "split": "test", "revision": "abc", "offline": True}
    assert str(data[0].provenance) == "someone/vqa test:1"


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"needs the library datasets; install it with `pip install 'fusionkit\[datasets\]'`"
    ):
        HuggingFace(HuggingFaceConfig(path=str(tmp_path), columns=VQA))  # type: ignore[arg-type]


def test_versions_that_run_code_of_a_dataset_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("datasets"), "__version__", "3.6.0")
    with pytest.raises(DataError, match=r"datasets 3\.6\.0 is installed, which may run code .* install 4\.0 or newer"):
        opened(tmp_path, VQA)


def test_a_script_beside_the_rows_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="scripted: cannot be read: Dataset scripts are no longer supported"):
        opened(folder, VQA)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------- what rows hold
def test_boxes_are_the_answer_where_no_column_has_one(tmp_path: Path) -> None:
    row = {"image": shown(), "phrase": "the bus", "objects": {"bbox": [[4, 6, 10, 12], [1, 2, 3, 4]]}}
    columns = {"image": "image", "boxes": "objects.bbox"}
    ask = "Locate {phrase}."
    corners = only(tmp_path, row, columns, ask=ask)
    assert corners.turns == (Turn("Locate the bus.", (Box(4, 6, 10, 12), " ", Box(1, 2, 3, 4)), "box"),)
    sides = only(tmp_path / "b", row, columns, ask=ask, box_format="xywh").turns[0]
    assert sides.boxes == (Box(4, 6, 14, 18), Box(1, 2, 4, 6))


def test_one_box_or_point_need_not_be_in_a_list_and_shares_become_pixels(tmp_path: Path) -> None:
    row = {
        "image": shown((100, 50)),
        "q": "Where?",
        "a": "At <point> in <box>.",
        "p": [0.5, 0.5],
        "b": [0.0, 0.2, 0.5, 0.4],
    }
    columns = {"image": "image", "question": "q", "answer": "a", "points": "p", "boxes": "b"}
    found = only(tmp_path, row, columns, units="shares", box_format="xywh").turns[0]
    assert found.answer == ("At ", Point(50, 25), " in ", Box(0, 10, 50, pytest.approx(30)), ".")


def test_parts_of_a_list_of_parts_are_taken_from_each(tmp_path: Path) -> None:
    row = {"image": shown(), "things": [{"box": [1, 2, 3, 4], "is": 0}, {"box": [5, 6, 7, 8], "is": 1}]}
    found = only(tmp_path, row, {"image": "image", "boxes": "things.box"}, ask="Find all things.")
    assert found.turns[0].boxes == (Box(1, 2, 3, 4), Box(5, 6, 7, 8))


def test_several_questions_and_several_pictures(tmp_path: Path) -> None:
    row = {"images": [shown((10, 20)), shown((30, 40))], "q": ["One?", "Two?"], "a": ["1", "It is two."]}
    found = only(tmp_path, row, {"image": "images", "question": "q", "answer": "a"})
    assert found.turns == (Turn("One?", ("1",), "count"), Turn("Two?", ("It is two.",), "free"))
    assert found.size == Size(10, 20)
    assert [each().size for each in found.more] == [(30, 40)]


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"from": "system", "value": "Be short."},
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "Ok."},
        ],
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Ok."}],
        [{"user": "What?", "assistant": "Ok.", "source": "x"}],
        [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Ok."}]},
        ],
    ],
)
def test_conversations_as_people_write_them(tmp_path: Path, messages: list[dict[str, Any]]) -> None:
    found = only(tmp_path, {"messages": messages}, {"conversations": "messages"})
    assert found.turns == (Turn("What?", ("Ok.",), "free"),)
    assert found.open_image is None


def test_it_travels_to_data_workers_and_reads_pictures_when_they_are_looked_at(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(8 + n, 8), "path": None}, "question": "q", "answer": "a"} for n in range(3)]
    data = pickle.loads(pickle.dumps(opened(saved(tmp_path, table(*rows, pictures=("image",))), VQA)))
    samples = [data[index] for index in (2, 0, 1)]
    assert [sample.open_image().size for sample in samples] == [(10, 8), (8, 8), (9, 8)]
    assert len(pickle.dumps(data)) < 20_000


# ------------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"image": "picture"} | {k: VQA[k] for k in ("question", "answer")},
            {},
            r"no column `picture` \(columns\.image\)",
        ),
        (
            VQA | {"answer": "anser"},
            {},
            r"no column `anser` .*did you mean `answer`\? there are image, question, answer",
        ),
        (
            VQA | {"boxes": "objects.box"},
            {},
            r"no column `objects\.box` \(columns\.boxes\); did you mean `objects\.bbox`",
        ),
        ({"image": "image", "answer": "answer"}, {"ask": "Is {it}?"}, r"no column `it` \(ask: \{it\}\)"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, columns: dict[str, str], settings: dict[str, str], message: str
) -> None:
    made = table(
        {"image": shown(), "question": "q", "answer": "a", "objects": {"bbox": [[1, 2, 3, 4]]}}, pictures=("image",)
    )
    with pytest.raises(DataError, match=message):
        opened(saved(tmp_path, made), columns, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "  "}, r"saved:1: column `question` must hold text or a whole number, got '  '"),
        ({"answer": None}, r"saved:1: column `answer` must hold text or a whole number, got nothing"),
        ({"answer": 1.5}, r"saved:1: column `answer` must hold text or a whole number, got a number"),
        ({"answer": ["a", "b"]}, r"saved:1: 1 question but 2 answers in column `answer`; expected one for each"),
        ({"image": {"bytes": b"no picture", "path": None}}, r"saved:1: "),
        ({"boxes": [[1, 2, 3]]}, r"saved:1: column `boxes` must hold lists of 4 numbers, got \[1, 2, 3\]"),
        ({"boxes": "1,2"}, r"saved:1: column `boxes` must hold lists of 4 numbers, got text"),
        ({"boxes": [[1, 2, 3, 4]]}, r"saved:1: 1 box but 0 <box> in the answers; every one must be used"),
        ({"boxes": [[90, 2, 95, 4]], "answer": "<box>"}, r"saved:1: boxes\[0\] .* lies outside the picture of 64x48"),
        ({"boxes": [[1, 2, 3, 4]], "answer": "<box>", "image": None}, "has 1 entry, but the row no picture"),
        ({"image": 3}, r"saved:1: column `image` must hold pictures or file names, got 3"),
        ({"image": "none.png"}, r"saved:1: .*none\.png"),
    ],
)
def test_a_row_that_cannot_be_used_says_which_and_why(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"image": shown(), "question": "q", "answer": "a", "boxes": None} | change
    pictures = ("image",) if isinstance(row["image"], dict) else ()
    data = opened(saved(tmp_path, table(row, pictures=pictures)), VQA | {"boxes": "boxes"})
    with pytest.raises(DataError, match=message):
        data[0]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "column `m` must hold a list of messages, got text"),
        ([{"role": "user", "content": "q"}], "must hold questions and answers in turn, got messages from user"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}], "from assistant, user"),
        ([{"user": "q", "assistant": ""}], "column `m` must hold text or a whole number, got ''"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, messages: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        only(tmp_path, {"m": messages}, {"conversations": "m"})


def test_a_class_that_is_not_known_is_no_answer(tmp_path: Path) -> None:
    made = table({"label": 1}, {"label": -1}, classes={"label": ["cat", "dog"]})
    data = opened(saved(tmp_path, made), {"answer": "label"}, ask="What is it?")
    assert data[0].turns[0].answer == ("dog",)
    with pytest.raises(DataError, match="saved:2: column `label` must hold text or a whole number, got nothing"):
        data[1]


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    columns, empty = {"question": "question", "answer": "answer"}, table({"question": "q", "answer": "a"}).select([])
    empty.to_parquet(str(tmp_path / "empty.parquet"))
    with pytest.raises(
        DataError, match=r"empty\.parquet: cannot be read: Instruction \"train\" corresponds to no data"
    ):
        opened(tmp_path / "empty.parquet", columns)
    with pytest.raises(DataError, match="saved: cannot be read"):
        opened(saved(tmp_path, empty), columns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"question": "q"}}, r"give columns\.answer, or columns\.boxes or columns\.points"),
        ({"columns": {"answer": "a"}}, r"give exactly one of columns\.question, columns\.conversations and `ask`"),
        ({"columns": {"question": "q", "answer": "a"}, "ask": "What?"}, "give exactly one of"),
        ({"columns": {"conversations": "m", "answer": "a"}}, r"leave columns\.answer out"),
        ({"columns": {"boxes": "b"}, "ask": "Where?"}, r"boxes and points need columns\.image"),
    ],
)
def test_a_mapping_must_say_what_is_asked_and_answered(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HuggingFaceConfig(path="data", **settings)
