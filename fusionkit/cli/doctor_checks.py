"""What `fusionkit doctor` finds out: the environment, and for every block whether it loads."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from fusionkit import discovery

PACKAGES = ("torch", "torchvision", "transformers", "timm", "accelerate", "pydantic", "safetensors", "xformers")
HEALTHY = ("ok", "blocked")


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one block. `state` is ok, broken, crashed, timeout, or what its metadata already says."""

    address: str
    distribution: str
    version: str
    state: str
    seconds: float | None = None
    error: str = ""
    frame: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything doctor knows."""

    fusionkit: str
    python: str
    executable: str
    platform: str
    packages: Mapping[str, str]
    environment: Mapping[str, Any]
    checks: tuple[Check, ...]
    troubles: tuple[discovery.Trouble, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether everything that should work does."""
        return (
            self.environment.get("torch") is not None
            and all(check.state in HEALTHY for check in self.checks)
            and not any(trouble.broken for trouble in self.troubles)
        )


def examine(plugins: Sequence[Path], progress: Callable[[str], None], limit: float) -> Report:
    """Look at the environment and load every block, each distribution in a process of its own of `limit` seconds."""
    scanned = discovery.scan()
    environment: dict[str, Any] = {"torch": None, "error": "no block could be tried, so torch was not looked at"}
    checks = [_from_metadata(entry) for entry in scanned.blocks if entry.state != "ok"]
    checks += [
        Check(each.address, each.distribution, each.version, each.state, error=each.reason)
        for each in discovery.recipes(scanned)
        if each.state != "ok"
    ]
    usable = sorted((entry for entry in scanned.blocks if entry.state == "ok"), key=_by_distribution)
    for number, (owner, group) in enumerate(groupby(usable, _by_distribution)):
        entries = list(group)
        progress(f"loading {len(entries)} blocks of {' '.join(owner)} ...")
        items = [{"family": entry.family, "name": entry.name} for entry in entries]
        seen, results = load_apart(items, look_around=number == 0, limit=limit)
        environment = seen or environment
        checks += [Check(entry.address, *owner, **result) for entry, result in zip(entries, results, strict=True)]
    for path in plugins:
        progress(f"loading {path} ...")
        _, (result,) = load_apart([{"plugin": str(path)}], look_around=False, limit=limit)
        checks.append(Check(str(path), "plugin file", "", **result))
    return Report(
        fusionkit=metadata.version("fusionkit"),
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        packages=dict(_versions()),
        environment=environment,
        checks=tuple(checks),
        troubles=scanned.troubles,
    )


def load_apart(
    items: Sequence[Mapping[str, str]], *, look_around: bool, limit: float = 300
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load blocks in another process; when one brings it down, go on with the next in a fresh one.

    Returns what it saw of the environment ({} if not asked) and one result per item.
    """
    environment: dict[str, Any] = {}
    results: dict[int, dict[str, Any]] = {}
    while len(results) < len(items):
        first = len(results)
        request = {"environment": look_around and not environment, "items": items[first:]}
        lines, end = _ask_worker(request, limit)
        started = None
        for line in lines:
            environment = line.get("environment", environment)
            started = line.get("start", started)
            if "done" in line:
                results[first + line.pop("done")] = line
        if len(results) < len(items):
            # The one it had started is to blame; if it had started none, the process itself cannot run.
            state, reason = end
            blamed = [len(results)] if started is not None else range(first, len(items))
            for index in blamed:
                results[index] = {"state": state, "error": reason}
    return environment, [results[index] for index in range(len(items))]


def _ask_worker(request: Mapping[str, Any], limit: float) -> tuple[list[dict[str, Any]], tuple[str, str]]:
    """The lines a worker wrote, and how it ended: a state and a reason for the block that it was loading."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fusionkit.cli.doctor_worker"],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=limit,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        return _lines(error.stdout or b""), ("timeout", f"did not load within {limit:.0f} s")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    said = f"; it said: {last[0]}" if last else ""
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return _lines(done.stdout), ("crashed", f"loading it ended the process ({how}){said}")


def _lines(output: bytes) -> list[dict[str, Any]]:
    """Complete lines only: a process that was stopped may have been in the middle of one."""
    return [json.loads(line) for line in output.decode().split("\n")[:-1]]


def _from_metadata(entry: discovery.Entry) -> Check:
    return Check(entry.address, entry.distribution, entry.version, entry.state, error=entry.reason)


def _by_distribution(entry: discovery.Entry) -> tuple[str, str]:
    return (entry.distribution, entry.version)


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
