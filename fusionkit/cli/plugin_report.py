"""What `fusionkit plugin check` finds out: for every block of a distribution, which checks of the kit it passes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit import discovery
from fusionkit.errors import UsageError

START_SECONDS = 120
"""Time for a process to start and import torch, before a block's own time begins."""
LATE = "not done within"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its id without the block's address, and why it failed (empty if it holds)."""

    check: str
    error: str


@dataclass(frozen=True, slots=True)
class Block:
    """What became of one block. `state` is ok, failed, broken, crashed, timeout, or what its metadata already says."""

    address: str
    state: str
    seconds: float = 0.0
    error: str = ""
    checks: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.checks if finding.error)


@dataclass(frozen=True, slots=True)
class Report:
    """All blocks of a distribution."""

    distribution: str
    version: str
    blocks: tuple[Block, ...]

    @property
    def is_good(self) -> bool:
        return all(block.state == "ok" for block in self.blocks)


def examine(distribution: str, limit: float, progress: Callable[[str], None]) -> Report:
    """Check every block of an installed distribution, each in its own process. Raises UsageError if it has none."""
    wanted = discovery.normalised(distribution)
    scanned = discovery.scan()
    entries = [entry for entry in scanned.blocks if entry.distribution == wanted]
    if not entries:
        others = sorted({entry.distribution for entry in scanned.blocks})
        raise UsageError(
            f"no installed distribution '{distribution}' brings blocks; there are {', '.join(others)} "
            "(install yours with `pip install -e FOLDER`)"
        )
    blocks = []
    for number, entry in enumerate(entries, start=1):
        progress(f"checking {entry.address} ({number} of {len(entries)}) ...")
        blocks.append(_check(entry, limit))
    return Report(wanted, entries[0].version, tuple(blocks))


def _check(entry: discovery.Entry, limit: float) -> Block:
    if entry.state != "ok":
        return Block(entry.address, entry.state, error=entry.reason)
    started = time.perf_counter()
    lines, error = _ask_worker(entry, limit)
    findings = tuple(Finding(line["check"], line["error"]) for line in lines if "check" in line)
    remarks = tuple(line["remark"] for line in lines if "remark" in line)
    broken = next((line["broken"] for line in lines if "broken" in line), "")
    if error:
        state = "timeout" if error.startswith(LATE) else "crashed"
    elif broken:
        state = "broken"
    else:
        state = "failed" if any(finding.error for finding in findings) or remarks else "ok"
    return Block(entry.address, state, round(time.perf_counter() - started, 2), error or broken, findings, remarks)


def _ask_worker(entry: discovery.Entry, limit: float) -> tuple[list[dict[str, Any]], str]:
    """What the worker wrote, and why it did not finish (empty if it did)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fusionkit.cli.plugin_worker", entry.family, entry.name, str(limit)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        output, said = process.communicate(timeout=limit + START_SECONDS)
    except subprocess.TimeoutExpired:
        # The worker ends itself in time, unless a plugin keeps it from that. The whole session: a process that the
        # plugin started would keep the pipes open.
        os.killpg(process.pid, signal.SIGKILL)
        output, said = process.communicate()
    lines = list(_lines(output))
    if any("end" in line for line in lines):
        return lines, ""
    begun = ([line["begin"] for line in lines if "begin" in line] or ["starting Python"])[-1]
    words = said.decode(errors="replace").strip().splitlines()
    if process.returncode == -signal.SIGKILL or any(word.startswith("Timeout (") for word in words):
        # Of the watchdog's traceback the innermost frame comes first.
        frame = next((word.strip() for word in words if word.strip().startswith("File ")), "")
        return lines, f"{LATE} {limit:g} s, it was {begun}" + (f" ({frame})" if frame else "")
    code = process.returncode
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return lines, f"{begun} ended the process ({how})" + (f"; it said: {words[-1]}" if words else "")


def _lines(output: bytes) -> Iterator[dict[str, Any]]:
    """Complete lines only: a process that was stopped may have been in the middle of one."""
    return (json.loads(line) for line in output.decode().split("\n")[:-1])
