"""Recipes made to do harm, under an audit hook: refused with their place, and Python is asked to do nothing for them.

After one validation of a good recipe no import outside `ALLOWED`, no file opened for writing, no process, no socket, and
no file read that the recipe has no business with. Time and memory are bounded by the operating system.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ALLOWED = {"difflib", "heapq", "_heapq"}
"""What a refusal may import besides modules of fusionkit: near misses are found by difflib, which needs the heap."""
GIGABYTE = 2**30
MOST_SECONDS, MOST_KIB = 60, 200_000
"""Processor time and growth of memory for all cases together; far above what they take, far below what harm would."""

GOOD = "schema: 1\nextends: builtin:tiny\nname: good\nrequires: [fusionkit]\n"
HEAD = "schema: 1\nname: bad\n"


@dataclass(frozen=True)
class Case:
    """A recipe's bytes, and what must stand where in the refusal."""

    data: bytes
    place: str
    words: str


def text(body: str, place: str, words: str) -> Case:
    return Case((HEAD + body).encode(), place, words)


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))

CASES = {
    "tag_call": text("summary: !!python/object/apply:os.system [touch owned]\n", "3:10", "tags"),
    "tag_name": text("summary: !!python/name:os.system\n", "3:10", "tags"),
    "tag_include": text("summary: !include ../secret.yaml\n", "3:10", "tags"),
    "anchor_bomb": text(f"a0: &a0 x\n{BOMB}", "3:5", "anchors"),
    "anchor_in_itself": text("a: &a {b: *a}\n", "3:4", "anchors"),
    "merge_key": text("<<: {name: worse}\n", "3:1", "merge keys"),
    "deep_lists": text("summary: " + "[" * 500_000, "3:", "deep"),
    "deep_mappings": text("summary: " + "{a: " * 200_000, "3:", "deep"),
    "deep_indentation": text("\n".join(" " * n + "a:" for n in range(1000)), "35:", "deep"),
    "wide": text("summary: [" + "1, " * 300_000 + "1]\n", "3:", "values"),
    "extends_upwards": text("extends: ../secret.yaml\n", "3:", "extends"),
    "extends_absolute": text("extends: /etc/hostname.yaml\n", "3:", "extends"),
    "extends_hidden": text("extends: ./x/../../secret.yaml\n", "3:", "extends"),
    "extends_link": text("extends: link.yaml\n", "3:", "extends"),
    "extends_itself": text("extends: extends_itself.yaml\n", "3:", "extends"),
    "extends_address": text("extends: https://example.org/x.yaml\n", "3:", "extends"),
    "extends_package": text("extends: os:path\n", "3:", "os"),
    "import_path": text("extends: builtin:tiny\nfusion: {run: {type: os.system}}\n", "4:", "fusion.run.type"),
    "import_path_colon": text("extends: builtin:tiny\nfusion: {run: {type: 'os:system'}}\n", "4:", "fusion.run.type"),
    "import_path_encoder": text(
        "extends: builtin:tiny\nstreams: {semantic: {encoder: {type: torch.nn.Linear}}}\n", "4:", "encoder.type"
    ),
    "report_endless": text(
        "extends: builtin:tiny\nstreams: {spatial: {select: {type: entropy, report: /dev/zero, top_k: 1}}}\n", "4:", "regular"
    ),
    "requires_address": text("requires: ['x @ https://example.org/x.whl']\n", "3:", "requires"),
    "requires_command": text("requires: ['x; touch owned']\n", "3:", "requires"),
    "format_string": text("extends: builtin:tiny\nsequence_length: '{0.__class__} %s ${HOME}'\n", "4:", "{0.__class__} %s ${HOME}"),
    "environment": text("extends: builtin:tiny\nsequence_length: ${HOME}\n", "4:", "sequence_length"),
    "giant_integer": text(f"extends: builtin:tiny\nsequence_length: {'9' * 500_000}\n", "4:", "too long"),
    "giant_exponent": text("extends: builtin:tiny\nsequence_length: 1e999999999\n", "4:", "too large for a number"),
    "giant_length": text("extends: builtin:tiny\nsequence_length: 9223372036854775808\n", "4:", "64 bits"),
    "octal": text("extends: builtin:tiny\nsequence_length: 010\n", "4:", "starts with a zero"),
    "duplicate_key": text("name: other\n", "3:1", "the first is on line 2"),
    "duplicate_escaped": text('"\\x6eame": other\n', "3:1", "the first is on line 2"),
    "nul": text("summary: a\0b\n", "3:11", "U+0000"),
    "nul_escaped": text('summary: "a\\0b"\n', "3:", "U+0000"),
    "escape_sequence": text("summary: \x1b]0;owned\x07\n", "3:10", "U+001B"),
    "invalid_utf8": Case(b"schema: 1\nname: caf\xe9\n", "byte 19", "UTF-8"),
    "utf_16": Case(GOOD.encode("utf-16"), "byte 0", "UTF-8"),
    "too_large": Case(GOOD.encode() + b"#" * 2**21, "byte 1048576", "larger than"),
}  # fmt: skip
SPACES = "spaces"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each case, all in one process, which may use no more than so much time and memory."""
    root = tmp_path_factory.mktemp("adversarial")
    (root / "secret.yaml").write_text(GOOD)
    folder = root / "recipes"
    folder.mkdir()
    (folder / "good.yaml").write_text(GOOD)
    (folder / "link.yaml").symlink_to(root / "secret.yaml")
    for name, case in CASES.items():
        (folder / f"{name}.yaml").write_bytes(case.data)
    os.mkfifo(folder / f"{SPACES}.yaml")
    poured = Pour(folder / f"{SPACES}.yaml")
    files = [str(folder / f"{name}.yaml") for name in (*CASES, SPACES)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("adversarial_worker.py")), str(folder / "good.yaml"), *files],
        capture_output=True, text=True, cwd=folder, check=False, timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {Path(line["case"]).stem: line for line in lines[:-1]}
    assert not (folder / "owned").exists()
    assert {path.name for path in folder.iterdir()} == {"good.yaml", "link.yaml", *(Path(file).name for file in files)}
    return {**found, "all": {**lines[-1], "poured": poured.finish()}}


class Pour(threading.Thread):
    """Writes a gigabyte of spaces into a pipe, as long as somebody reads."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.written = path, 0
        self.start()

    def run(self) -> None:
        block = b" " * 2**16
        try:
            with self.path.open("wb", buffering=0) as pipe:
                while self.written < GIGABYTE:
                    self.written += pipe.write(block)
        except BrokenPipeError:
            return

    def finish(self) -> int:
        self.join(timeout=60)
        assert not self.is_alive(), "nobody opened the pipe"
        return self.written


@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_place(name: str, reports: dict[str, dict[str, Any]]) -> None:
    report, case = reports[name], CASES[name]
    assert report["code"] == 2
    first = report["said"].splitlines()[0]
    place = re.escape(f"{name}.yaml:") + (re.escape(case.place) if case.place[0].isdigit() else rf".*{case.place}")
    assert re.search(place, report["said"]), first
    assert case.words in report["said"], first
    assert len(report["said"]) < 1_000_000
    assert "Traceback" not in report["said"]
    assert "\x1b" not in report["said"]


@pytest.mark.parametrize("name", [*CASES, SPACES])
def test_nothing_is_done_for_it(name: str, reports: dict[str, dict[str, Any]]) -> None:
    report = reports[name]
    assert report["written"] == []
    assert report["forbidden"] == []
    assert {module for module in report["imports"] if module.partition(".")[0] != "fusionkit"} <= ALLOWED
    assert not any(module.startswith(("fusionkit.blocks", "fusionkit.model")) for module in report["imports"])


@pytest.mark.parametrize("name", [*CASES, SPACES])
def test_no_file_is_read_that_is_none_of_its_business(name: str, reports: dict[str, dict[str, Any]]) -> None:
    """Its own text, recipes that come with packages, modules, and metadata of what is installed."""
    for path in map(Path, reports[name]["read"]):
        assert (
            path.name in (f"{name}.yaml", "tiny.yaml", "entry_points.txt", "METADATA", "top_level.txt")
            or path.suffix in (".py", ".pyc", ".zip", ".pth")
            or path.is_dir()
        ), path
        assert path.name != "secret.yaml"


def test_a_gigabyte_that_streams_in_is_refused_after_the_first_megabyte(reports: dict[str, dict[str, Any]]) -> None:
    assert reports[SPACES]["code"] == 2
    assert "byte 1048576: larger than 1048576 bytes" in reports[SPACES]["said"]
    assert reports["all"]["poured"] <= 2**20 + 2**18


def test_memory_is_bounded(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["all"]["grown"] <= MOST_KIB
