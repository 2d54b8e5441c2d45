"""The process in which `fusionkit plugin check` loads and checks one block.

Called with family, name and a limit in seconds. Writes JSON lines: {"begin": what} before each thing, {"check", "error"} after each check,
{"broken": why} if the block does not load, {"remark": what} if importing it had side effects, {"end": true} at last.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any


def main(family: str, name: str, limit: str) -> None:
    """Check one block; if that takes longer than the limit, say where it stands and end the process."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")

    def answer(**data: Any) -> None:
        out.write(json.dumps(data) + "\n")

    with tempfile.TemporaryFile() as printed:
        # What plugins print must not reach the pipe; what they print while they load is worth a remark.
        os.dup2(printed.fileno(), 1)
        answer(begin="importing torch")
        from fusionkit import registry
        from fusionkit.errors import FusionkitError
        from fusionkit.testing import checks_for

        before = _globals()
        # A watchdog that needs no lock of Python's, so it barks whatever the plugin is doing.
        faulthandler.dump_traceback_later(float(limit), exit=True)
        answer(begin="loading the block")
        try:
            spec = registry.spec(family, name)
            registry.factory(spec)
        except FusionkitError as error:
            answer(broken=str(error))
        else:
            sys.stdout.flush()
            for remark in _remarks(before, _globals(), os.fstat(printed.fileno()).st_size):
                answer(remark=remark)
            _run(checks_for(spec), spec.address, answer)
        # A plugin may have replaced or closed stdout; flushing at exit must not end in the pipe.
        os.dup2(2, 1)
    faulthandler.cancel_dump_traceback_later()
    answer(end=True)
    out.flush()
    # Threads that a plugin left running must not keep the process alive.
    os._exit(0)


def _run(checks: list[Any], address: str, answer: Any) -> None:
    for check in checks:
        short = check.id.removeprefix(address)
        answer(begin=f"checking {short}")
        try:
            check()
        # A block under test may raise anything, SystemExit included: that is what is being found out.
        except (Exception, SystemExit) as error:
            lines = str(error).strip().splitlines() or [""]
            kind = "" if type(error).__name__ == "CheckFailed" else f"{type(error).__name__}: "
            answer(check=short, error=f"{kind}{lines[0]}" or type(error).__name__)
        else:
            answer(check=short, error="")


def _globals() -> dict[str, Any]:
    """What a library must leave alone on import."""
    import random

    import numpy as np
    import torch

    return {
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's default device": str(torch.get_default_device()),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": repr(np.random.get_state()),
        "Python's random state": random.getstate(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "whether gradients are on": torch.is_grad_enabled(),
    }


def _remarks(before: dict[str, Any], after: dict[str, Any], printed: int) -> Iterator[str]:
    for what, value in before.items():
        if after[what] != value:
            yield f"loading it changes {what}"
    if printed:
        yield f"loading it prints {printed} bytes to stdout, where they mix with results"


if __name__ == "__main__":
    main(*sys.argv[1:])
