"""The process in which `fusionkit doctor` loads blocks, so that one that crashes or hangs takes nobody down.

Reads one JSON request on stdin: {"environment": bool, "items": [{"family", "name"} or {"plugin"}]}. Writes JSON lines:
first {"environment": ...} if asked, then for each item {"start": number} before and {"done": number, ...} after.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answer one request."""
    # Plugins may print while they load; only what we write may reach the pipe.
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def answer(data: dict[str, Any]) -> None:
        out.write(json.dumps(data) + "\n")

    request = json.loads(sys.stdin.read())
    environment = look_around()
    if request["environment"]:
        answer({"environment": environment})
    for number, item in enumerate(request["items"]):
        answer({"start": number})
        answer({"done": number, **load(item)})


def look_around() -> dict[str, Any]:
    """What torch is and can do here. Importing it first keeps its time out of the first block's."""
    started = time.perf_counter()
    try:
        import torch
    except Exception as error:  # a broken torch may raise anything; the doctor is here to report it
        return {"torch": None, "error": f"torch does not import: {type(error).__name__}: {error}"}
    found: dict[str, Any] = {"torch": torch.__version__, "seconds": round(time.perf_counter() - started, 3)}
    found["threads"] = torch.get_num_threads()
    found["cuda"] = [
        f"{torch.cuda.get_device_name(index)} ({torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB)"
        for index in range(torch.cuda.device_count())
    ]
    found["no_cuda"] = "" if found["cuda"] else _why_no_cuda(torch)
    found["mps"] = torch.backends.mps.is_available()
    found["attention"] = _attention()
    return found


def _why_no_cuda(torch: Any) -> str:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return f"torch is built for CUDA {torch.version.cuda}, but no device is visible; see nvidia-smi"


def _attention() -> dict[str, str]:
    """For every backend why it cannot be used; the empty text if it can."""
    try:
        from fusionkit.ops.attention import BACKENDS, why_unavailable

        return {backend: why_unavailable(backend) for backend in BACKENDS}
    except Exception as error:  # whatever keeps the backends from loading is their reason in the report
        return {"all": f"{type(error).__name__}: {error}"}


def load(item: dict[str, str]) -> dict[str, Any]:
    """Load a block's spec and factory, or every block of a plugin file, and say how it went."""
    from fusionkit import registry
    from fusionkit.errors import FusionkitError

    started = time.perf_counter()
    try:
        _steps(registry, item)()
    except FusionkitError as error:
        cause = error.__cause__ or error
        return {
            "state": "broken",
            "seconds": round(time.perf_counter() - started, 3),
            "error": str(error) if cause is error else f"{type(cause).__name__}: {cause}",
            "frame": registry.last_frame(cause),
        }
    return {"state": "ok", "seconds": round(time.perf_counter() - started, 3), "error": "", "frame": ""}


def _steps(registry: Any, item: dict[str, str]) -> Callable[[], None]:
    def load_block() -> None:
        registry.factory(registry.spec(item["family"], item["name"]))

    def load_file() -> None:
        for spec in registry.load_plugin_file(item["plugin"]):
            registry.factory(spec)

    return load_file if "plugin" in item else load_block


if __name__ == "__main__":
    main()
