"""The command line in this process."""

from __future__ import annotations

from fusionkit.cli.main import run


def exit_code(*words: object) -> int:
    """Runs a command line; gives its exit code: `exit_code("plan", "tiny")`."""
    try:
        run([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
