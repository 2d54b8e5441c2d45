"""Facts about the machine and the code, for every row."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def facts(device: str) -> dict[str, Any]:
    """Device, library versions and commit, as they stand in every row."""
    cuda = device == "cuda"
    return {
        "git": _commit(),
        "fusionkit": _version("fusionkit"),
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "kind": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda if cuda else None,
    }


def clock(device: str) -> tuple[float | None, float | None]:
    """Clock in MHz and temperature in °C now; None where the machine does not say."""
    if device == "cuda":
        command = shutil.which("nvidia-smi")
        if command is None:
            return None, None
        query = [command, "--query-gpu=clocks.sm,temperature.gpu", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        numbers = re.findall(r"[\d.]+", answer[0]) if answer else []
        return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else (None, None)
    speeds = [float(text) for text in re.findall(r"cpu MHz\s*:\s*([\d.]+)", _cpuinfo())]
    return (round(sum(speeds) / len(speeds), 1) if speeds else None), None


def free_bytes(device: str) -> int | None:
    """Memory that can still be had on the device; None where the machine does not say."""
    if device == "cuda":
        # What torch holds back for later allocations is not free to others, but it is to us.
        held_back = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + held_back
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", path.read_text(encoding="utf-8")) if path.exists() else None
    return 1024 * int(found[1]) if found else None


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this code is in, with `+` if the package differs from it; None outside a checkout."""
    package = Path(__file__).parents[1]
    git = shutil.which("git")
    if git is None or not (package.parent / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run([git, "-C", str(package), *words], capture_output=True, text=True, check=False).stdout

    head = ask("rev-parse", "--short=12", "HEAD").strip()
    return head + ("+" if ask("status", "--porcelain", "--", ".").strip() else "") if head else None
