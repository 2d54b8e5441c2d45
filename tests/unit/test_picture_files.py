"""Pictures behind addresses: fetched once, checked, kept; a local server stands for the net."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusionkit import registry
from fusionkit.blocks.datasets import picture_files
from fusionkit.blocks.datasets.picture_files import fetch, kept_name
from fusionkit.errors import DataError
from fusionkit.geometry import Size


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = png(40, 30)


class Server:
    """Answers /a.png, /page, /big; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                pages = {"/a.png": PICTURE, "/page": b"<html>gone</html>"}
                if self.path in pages:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(pages[self.path])
                elif self.path == "/file":
                    self.send_response(302)
                    self.send_header("Location", "file:///etc/hostname")
                    self.end_headers()
                else:
                    self.send_error(404)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever)
    thread.start()
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


def load(name: str, **config: Any) -> Any:
    spec = registry.spec("datasets", name)
    return registry.factory(spec)(spec.config.model_validate_json(json.dumps(config)), None)


def test_a_picture_is_fetched_once(server: Server, tmp_path: Path) -> None:
    address = f"{server.address}/a.png"
    for _ in range(2):
        path = fetch(address, tmp_path / "images", "rows.jsonl:3", hashlib.sha256(PICTURE).hexdigest())
        assert path == tmp_path / "images" / kept_name(address)
        assert path.read_bytes() == PICTURE
    assert server.asked == ["/a.png"]
    assert [entry.name for entry in (tmp_path / "images").iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("/a.png", "0" * 64, "has another picture now: SHA-256 .*, expected 000000000000"),
        ("/page", None, "picture: not a picture that Pillow can read"),
        ("/none", None, "the server answers 404 Not Found"),
        ("/file", None, "the server answers 302 .*not allowed|cannot be fetched"),
    ],
)
def test_what_is_no_picture_is_not_kept(
    server: Server, tmp_path: Path, path: str, sha256: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:3: {server.address}{path}:? ?({message})"):
        fetch(server.address + path, tmp_path, "rows.jsonl:3", sha256)
    assert list(tmp_path.iterdir()) == []


def test_large_files_and_other_addresses_are_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_files, "LARGEST", 10)
    with pytest.raises(DataError, match="more than 0 MiB, not fetched"):
        fetch(f"{server.address}/a.png", tmp_path, "x:1")
    with pytest.raises(DataError, match=r"x:1: 'file:///etc/passwd' is no address of a picture; expected http:// or"):
        fetch("file:///etc/passwd", tmp_path, "x:1")
    with pytest.raises(DataError, match=r"x:1: http://127\.0\.0\.1:9/a: cannot be fetched"):
        fetch("http://127.0.0.1:9/a", tmp_path, "x:1")


def test_own_data_may_name_addresses(server: Server, tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = {"image": f"{server.address}/a.png", "conversations": talk}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"mine\.jsonl:1: 'image' is the address .*, or set fetch: true"):
        load("jsonl", path=str(path))[0]
    dataset = load("jsonl", path=str(path), fetch=True)
    assert [dataset[0].size, dataset[0].open_image().size] == [Size(40, 30), (40, 30)]
    assert server.asked == ["/a.png"]


def test_pixmo_fetches_what_is_missing_and_leaves_out_dead_links(server: Server, tmp_path: Path) -> None:
    rows = [
        {"image_url": f"{server.address}/a.png", "image_sha256": hashlib.sha256(PICTURE).hexdigest(), "caption": "1"},
        {"image_url": f"{server.address}/none", "caption": "2"},
        {"image_url": f"{server.address}/a.png", "caption": "3"},
    ]
    (tmp_path / "cap.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load("pixmo", root=str(tmp_path), parts=["cap"], fetch=True)
    assert dataset[0].size == Size(40, 30)
    with pytest.raises(DataError, match=r"cap\.jsonl:2: .*/none: the server answers 404"):
        dataset[1]
    partly = load("pixmo", root=str(tmp_path), parts=["cap"], fetch=True, leave_out_missing=True)
    assert [partly[index].turns[0].text for index in range(len(partly))] == ["1", "3"]
    assert partly.left_out == 1
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        [hashlib.sha256(PICTURE).hexdigest(), kept_name(f"{server.address}/a.png")]
    )


def test_rows_that_share_an_address_are_all_kept(server: Server, tmp_path: Path) -> None:
    rows = [{"image_url": f"{server.address}/a.png", "caption": str(number)} for number in range(40)]
    (tmp_path / "cap.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load("pixmo", root=str(tmp_path), parts=["cap"], fetch=True, leave_out_missing=True)
    assert (len(dataset), dataset.left_out) == (40, 0)
    assert [path.name for path in (tmp_path / "images").iterdir()] == [kept_name(f"{server.address}/a.png")]


@pytest.mark.parametrize("name", ["../../out.png", "/elsewhere/out.png"])
def test_nothing_is_written_outside_the_folder(server: Server, tmp_path: Path, name: str) -> None:
    content = {
        "images": [{"id": 1, "file_name": name, "coco_url": f"{server.address}/a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"images\[0\]: file_name '.*out\.png' leads out of .*images"):
        load("coco_boxes", annotations=str(tmp_path / "instances.json"), fetch=True)[0]
    with pytest.raises(DataError, match=r"x:1: '\.\./out\.png' is no file name to keep a picture under"):
        fetch(f"{server.address}/a.png", tmp_path, "x:1", name="../out.png")
    assert server.asked == []


def test_coco_fetches_what_is_missing(server: Server, tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "one.png", "coco_url": f"{server.address}/a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"instances\.json: images\[0\]: .*one\.png: no such picture"):
        load("coco_boxes", annotations=str(tmp_path / "instances.json"))[0]
    dataset = load("coco_boxes", annotations=str(tmp_path / "instances.json"), fetch=True)
    assert (dataset[0].size, dataset[0].size) == (Size(40, 30), Size(40, 30))
    assert server.asked == ["/a.png"]
    assert (tmp_path / "images" / "one.png").is_file()
