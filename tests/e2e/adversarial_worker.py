"""Validate recipes in one process and report, as JSON lines, what Python was asked to do meanwhile.

Called with a good recipe, then the recipes to try. The good one is validated first, so that what any validation needs is
there; from then on an audit hook, which cannot be removed, sees every import, every file opened, every process and socket.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import time
from typing import Any

WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("subprocess.", "socket.", "ctypes.", "shutil.", "urllib.", "http.", "ftplib.", "smtplib.", "pickle.", "tempfile.",
             "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.putenv", "os.unsetenv", "os.remove", "os.rename",
             "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.utime", "code.", "pty.",
             "webbrowser.", "sys.addaudithook")  # fmt: skip


class Watch:
    """What happened since the last `clear`."""

    def __init__(self) -> None:
        self.on = False
        self.clear()

    def clear(self) -> None:
        self.imports: list[str] = []
        self.read: list[str] = []
        self.written: list[str] = []
        self.forbidden: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "import":
            self.imports.append(str(arguments[0]))
        elif event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or (isinstance(flags, int) and flags & WRITE)
            (self.written if writes else self.read).append(
                os.fsdecode(path) if not isinstance(path, int) else str(path)
            )
        elif event.startswith(FORBIDDEN):
            self.forbidden.append(event)


def validate(path: str) -> tuple[int, str]:
    """The exit code of `fusionkit validate`, and what it printed to stderr."""
    from fusionkit.cli.main import run

    said = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            run(["validate", path])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, said.getvalue()


def main(good: str, *cases: str) -> None:
    code, said = validate(good)
    if code:
        sys.exit(said)
    watch = Watch()
    sys.addaudithook(watch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in cases:
        watch.clear()
        started = time.process_time()
        watch.on = True
        code, said = validate(case)
        watch.on = False
        report = {name: value for name, value in vars(watch).items() if name != "on"}
        seconds = time.process_time() - started
        print(json.dumps({"case": case, "code": code, "said": said, "seconds": seconds, **report}), flush=True)
    print(json.dumps({"grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
