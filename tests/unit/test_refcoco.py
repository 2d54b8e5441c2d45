"""RefCOCO from local files: JSON, and the released pickle."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from fusionkit.blocks.datasets.plain_pickle import read_plain_pickle
from fusionkit.blocks.datasets.refcoco import Refcoco
from fusionkit.blocks.datasets.specs import RefcocoConfig
from fusionkit.errors import DataError
from fusionkit.geometry import Box, Size
from fusionkit.sample import Turn

REFS: list[dict[str, Any]] = [
    {"ref_id": 0, "ann_id": 7, "image_id": 1, "split": "val", "category_id": 1,
     "sentences": [{"sent": "left cat", "tokens": ["left", "cat"]}, {"sent": "the cat."}]},
    {"ref_id": 1, "ann_id": 8, "image_id": 2, "split": "train", "sentences": [{"sent": "dog"}]},
    {"ref_id": 2, "ann_id": 9, "image_id": 1, "split": "val", "sentences": [{"sent": "right cat"}]},
    {"ref_id": 3, "ann_id": 8, "image_id": 2, "split": "testA", "sentences": [{"sent": "big dog"}]},
]  # fmt: skip
INSTANCES = {
    "images": [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}],
    "annotations": [
        {"id": 7, "bbox": [1, 2, 10, 20]},
        {"id": 8, "bbox": [0, 0, 5.5, 5]},
        {"id": 9, "bbox": [30, 2, 10, 20]},
    ],
}


def make(root: Path, refs: Any = REFS, instances: Any = INSTANCES) -> Path:
    (root / "images").mkdir(parents=True)
    for name in ("one.jpg", "two.jpg"):
        Image.new("RGB", (64, 48)).save(root / "images" / name)
    (root / "refs.json").write_text(json.dumps(refs))
    (root / "instances.json").write_text(json.dumps(instances))
    return root


def load(root: Path, **settings: Any) -> Refcoco:
    return Refcoco(RefcocoConfig(root=str(root), **settings))


def test_a_sample_is_a_picture_with_all_its_expressions(tmp_path: Path) -> None:
    dataset = load(make(tmp_path), split="val")
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample.size == Size(64, 48)
    assert sample.turns == (
        Turn("Locate left cat.", (Box(1, 2, 11, 22),), "box", ("val",)),
        Turn("Locate the cat.", (Box(1, 2, 11, 22),), "box", ("val",)),
        Turn("Locate right cat.", (Box(30, 2, 40, 22),), "box", ("val",)),
    )
    assert sample.open_image is not None
    assert sample.open_image().mode == "RGB"
    assert sample.provenance.source.endswith("refs.json")


def test_several_splits(tmp_path: Path) -> None:
    dataset = load(make(tmp_path), splits=("val", "testA"))
    assert [len(dataset[index].turns) for index in range(len(dataset))] == [3, 1]


def test_a_missing_root_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"refcoco: no folder .*nowhere; give its path as `root`, expected refs\.json or refs\(\.\.\.\)\.p, instances\.json and images/",
    ):
        load(tmp_path / "nowhere", split="val")


def python2(value: Any) -> bytes:
    """A value as Python 2 pickled it with protocol 2: text is bytes, and there are no frames."""
    if isinstance(value, str):
        return b"U" + bytes([len(value.encode())]) + value.encode()
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    return b"}(" + b"".join(python2(key) + python2(item) for key, item in value.items()) + b"u"


PICKLED = [lambda refs, protocol=protocol: pickle.dumps(refs, protocol) for protocol in (0, 2, 4, 5)]


@pytest.mark.parametrize("dump", [*PICKLED, lambda refs: b"\x80\x02" + python2(refs) + b"."])
def test_the_released_pickle_is_read(tmp_path: Path, dump: Callable[[Any], bytes]) -> None:
    expected = load(make(tmp_path / "a"), split="val")[0]
    root = make(tmp_path / "b")
    (root / "refs.json").unlink()
    (root / "refs(unc).p").write_bytes(dump(REFS))
    found = load(root, split="val")[0]
    assert (found.turns, found.size) == (expected.turns, expected.size)
    assert str(found.provenance) == f"{root / 'refs(unc).p'}:0"


HOSTILE = {
    "a call": (b"cos\nsystem\n(S'echo'\ntR.", r"the pickle names os\.system, which could run code"),
    "a call by protocol 4": (pickle.dumps(print), r"the pickle names builtins\.print"),
    "an instance": (b"(ios\nsystem\n.", r"the pickle names os\.system"),
    "an array": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", r"names numpy\.core\.multiarray\._reconstruct"),
    "a new object": (b"\x80\x02)\x81.", "not a whole pickle"),
    "a place in memory of gigabytes": (b"\x80\x02]r\xff\xff\xff\xffhello", "not a whole pickle"),
    "an extension": (b"\x80\x02\x82\x01.", "not a whole pickle"),
    "something outside": (b"Px\n.", "refers to something outside itself"),
    "cut off": (pickle.dumps(REFS)[:40], "not a whole pickle"),
    "nothing": (b"", "not a whole pickle"),
    "words": (b"hello", "not a whole pickle"),
    "other bytes": (b"\x80\x02U\x02\xff\xfe.", "not a whole pickle .UnicodeDecodeError"),
    "another thing": (pickle.dumps({"a": 1}), "expected a list of objects"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_pickles_hold_plain_containers_only(tmp_path: Path, content: bytes, message: str) -> None:
    root = make(tmp_path)
    (root / "refs.json").unlink()
    (root / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match=rf"refs\(unc\)\.p: .*{message}"):
        load(root, split="val")


def test_mutated_pickles_raise_nothing_else(tmp_path: Path) -> None:
    good, draw = pickle.dumps(REFS, 2), random.Random(0)
    path, refused = tmp_path / "refs.p", 0
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.choice(b"RcibC(}]u.eKrj\x81\x96\x00\x7f\xff")
        path.write_bytes(content)
        try:
            read_plain_pickle(path, "")
        except DataError:
            refused += 1
    assert refused > 500


def test_several_files_of_expressions_must_be_chosen_from(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "refs(google).p").write_bytes(pickle.dumps(REFS[2:]))
    with pytest.raises(DataError, match=r"several files of expressions: refs\(google\)\.p, refs\.json; choose one"):
        load(root, split="val")
    assert len(load(root, split="val", refs="refs(google).p")[0].turns) == 1
    with pytest.raises(DataError, match=r"refs\(umd\)\.p: cannot be read \(No such file or directory\); expected"):
        load(root, split="val", refs="refs(umd).p")


def test_rows_may_have_their_own_boxes(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "instances.json").unlink()
    (root / "refs.json").unlink()
    (root / "images" / "one.jpg").rename(root / "images" / "COCO_train2014_000000000042.jpg")
    row = {"split": "val", "sentences": [{"sent": "cat"}], "file_name": "COCO_train2014_000000000042_7.jpg"}
    (root / "refs.jsonl").write_text(json.dumps(row | {"bbox": [1, 2, 10, 20]}) + "\n")
    assert load(root, split="val", boxes="xywh")[0].turns[0].boxes == (Box(1, 2, 11, 22),)
    assert load(root, split="val", boxes="xyxy")[0].turns[0].boxes == (Box(1, 2, 10, 20),)
    (root / "refs.jsonl").write_text(json.dumps(row | {"bbox": [5, 2, 3, 20]}) + "\n")
    with pytest.raises(DataError, match=r"refs\.jsonl: entry 0: bbox .* expected x0 < x1 .*`boxes: xywh`"):
        load(root, split="val", boxes="xyxy")


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    root = make(tmp_path / "root")
    (root / "images").rename(tmp_path / "train2014")
    assert load(root, split="val", images=str(tmp_path / "train2014"))[0].size == Size(64, 48)


BROKEN: dict[str, tuple[Any, Any, str]] = {
    "no list": ({}, INSTANCES, r"refs\.json: expected a list of objects"),
    "no annotations": (REFS, {"images": []}, r"instances\.json: expected a list of objects under 'annotations'"),
    "no such image": ([REFS[0] | {"image_id": 5}], INSTANCES, r"refs\.json: entry 0: image_id 5 is not in .*instances\.json"),
    "no such box": ([REFS[0] | {"ann_id": 5}], INSTANCES, r"entry 0: ann_id 5 in .*: expected bbox \[x, y, width, height\], got None"),
    "empty box": ([REFS[0] | {"ann_id": 1}], INSTANCES | {"annotations": [{"id": 1, "bbox": [0, 0, 0, 5]}]}, r"bbox \[0, 0, 0, 5\] is empty"),
    "no sentences": ([REFS[0] | {"sentences": []}], INSTANCES, r"entry 0: 'sentences' must be a list"),
    "no sent": ([REFS[0] | {"sentences": [{"raw": "x"}]}], INSTANCES, r"entry 0: 'sent' must be text, got nothing"),
    "no split": ([{"ref_id": 1}], INSTANCES, r"entry 0: 'split' must be text, got nothing"),
    "other splits": (REFS[1:2], INSTANCES, r"no split val; refs\.json has train"),
}  # fmt: skip


@pytest.mark.parametrize(("refs", "instances", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_name_the_entry(tmp_path: Path, refs: Any, instances: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make(tmp_path, refs, instances), split="val")


def test_broken_json(tmp_path: Path) -> None:
    (make(tmp_path) / "refs.json").write_text("[{]")
    with pytest.raises(DataError, match=r"refs\.json: not valid JSON at column 3"):
        load(tmp_path, split="val")
    (tmp_path / "refs.json").unlink()
    with pytest.raises(
        DataError,
        match=r"refs\.json: no such file; expected refs\.json or refs\(\.\.\.\)\.p, instances\.json and images/",
    ):
        load(tmp_path, split="val")


def test_a_missing_picture_names_the_entry(tmp_path: Path) -> None:
    (make(tmp_path) / "images" / "one.jpg").unlink()
    with pytest.raises(DataError, match=r"refs\.json: entry 0: .*one\.jpg: no such picture"):
        load(tmp_path, split="val")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either `split: train` or `splits:"),
        ({"split": "val", "splits": ("val",)}, "give either"),
        ({"splits": ("val", "val")}, "splits are repeated"),
        ({"split": "dev"}, "Input should be 'train', 'val'"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RefcocoConfig(**settings)
