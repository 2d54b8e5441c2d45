"""The command `fusionkit`: which verbs there are, and how a command ends.

Errors raised on purpose end as `error: ...` on stderr with exit code 2, without a traceback; Ctrl-C ends with 130.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from fusionkit.cli.output import note
from fusionkit.errors import FusionkitError, RecipeError


class Verb(NamedTuple):
    """Where a verb lives, and the line that `fusionkit --help` shows for it without importing it.

    Its module has `command`, a function typed for typer; or `app`, a typer app with verbs of its own; or `main`, which
    takes the words after the verb.
    """

    module: str
    help: str


VERBS = {
    "list": Verb("fusionkit.cli.list_blocks", "List the installed blocks and recipes."),
    "show": Verb("fusionkit.cli.show", "Explain one block or recipe, with an example."),
    "doctor": Verb("fusionkit.cli.doctor", "Check this installation and every block in it."),
    "validate": Verb("fusionkit.cli.validate", "Check that a recipe is well formed, without building it."),
    "plan": Verb("fusionkit.cli.plan", "Show shapes, tokens, parameters and costs."),
    "inspect": Verb("fusionkit.cli.inspect", "Show what a recipe makes of one picture."),
    "graph": Verb("fusionkit.cli.graph", "Draw a recipe as a picture or as Mermaid text."),
    "schema": Verb("fusionkit.cli.schema", "Print the JSON schema of recipes, for editors."),
    "lock": Verb("fusionkit.cli.lock", "Write down exactly what a recipe means here and now."),
    "diff": Verb("fusionkit.cli.diff", "Compare two recipes by what they build."),
    "export": Verb("fusionkit.cli.export", "Print a recipe with everything filled in, as YAML."),
    "convert": Verb("fusionkit.cli.convert", "Convert a released checkpoint into one of ours."),
    "train": Verb("fusionkit.cli.train", "Train a recipe, or resume, or use your own data."),
    "evaluate": Verb("fusionkit.cli.evaluate", "Score a checkpoint on held-out data."),
    "sweep": Verb("fusionkit.cli.sweep", "Compare variants of a recipe, with seeds and intervals."),
    "ask": Verb("fusionkit.cli.ask", "Ask a checkpoint about a picture; draws boxes."),
    "analyze": Verb("fusionkit.cli.analyze", "See what encoders see, and which layers to read."),
    "bench": Verb("fusionkit.cli.bench", "Time blocks beside their peers and the machine's limits."),
    "boxes": Verb("fusionkit.cli.boxes", "Convert, score and draw boxes of any model family."),
    "data": Verb("fusionkit.cli.data", "Check your own training data, or write sample questions."),
    "plugin": Verb("fusionkit.cli.plugin", "Start a plugin of your own, or check one."),
    "demo": Verb("fusionkit.cli.demo", "Run the main job end to end: plan, train, evaluate, ask."),
}

TRACEBACK = "--traceback"

QUICK = ("list", "validate", "plan")
"""Verbs that must answer at once, so they are reached without typer, which costs more time than all of their work."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = words[:1] == [TRACEBACK]
    verb, *rest = words[show_traceback:] or [""]
    if verb in QUICK and "_FUSIONKIT_COMPLETE" not in os.environ:
        if arguments is None:
            _hurry()
        try:
            with explained(show_traceback):
                import_module(VERBS[verb].module).main(rest)
        finally:
            if arguments is None and "torch" not in sys.modules:
                gc.freeze()  # or the interpreter looks through everything once more before it ends
        return
    from fusionkit.cli.app import make_app

    make_app().main(args=words, prog_name="fusionkit")


def _hurry() -> None:
    """Leave out what a process of a fifth of a second has no use for."""
    gc.disable()
    # pydantic would read the metadata of every installed distribution, looking for plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


@contextmanager
def explained(show_traceback: bool) -> Iterator[None]:
    """Turn errors into a line on stderr and an exit code; with `show_traceback`, leave them as they are."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        note("interrupted")
        raise SystemExit(130) from None
    except FusionkitError as error:
        if show_traceback:
            raise
        note(describe(error))
        raise SystemExit(2) from error
    except BrokenPipeError:
        # Whoever read the result has seen enough (`fusionkit list | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        # A missing permission or a full disk: the operating system's own words say it better than a traceback.
        if show_traceback or error.errno not in _EXPLAINED:
            raise
        place = f"{error.filename}: " if error.filename else ""
        note(f"error: {place}{error.strerror}")
        raise SystemExit(2) from error


_EXPLAINED = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def describe(error: FusionkitError) -> str:
    """The lines printed for an error: one for each problem of a recipe, else its message."""
    if isinstance(error, RecipeError):
        return "\n".join(f"error: {problem}" for problem in error.problems)
    return f"error: {error}"
