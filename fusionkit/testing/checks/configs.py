"""What every block's spec must do, of any family: be described, strict, torch-free, and have examples that work."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from fusionkit.testing.subjects import CheckFailed, Subject, require

HEAVY = ("torch", "numpy", "timm", "transformers", "PIL")


def check_example_survives_json(subject: Subject) -> None:
    """A config written out as JSON reads back as itself: a saved recipe is the recipe."""
    written = subject.config.model_dump_json()
    again = subject.spec.config.model_validate_json(written)
    require(again == subject.config, f"config changes on its way through JSON: {subject.config} -> {again}")


def check_unknown_field_is_refused(subject: Subject) -> None:
    """A field the config does not know is an error, and the config is frozen."""
    try:
        subject.spec.config.model_validate({**subject.config.model_dump(), "no_such_field": 1})
    except ValidationError:
        pass
    else:
        raise CheckFailed("an unknown field is accepted (configs forbid extra fields)")
    require(bool(subject.config.model_config.get("frozen")), "the config is not frozen")


def check_fields_are_described(subject: Subject) -> None:
    """Every field has a description, and the block a summary: `fusionkit show` prints them."""
    fields = subject.spec.config.model_fields
    bare = [name for name, info in fields.items() if name != "type" and not info.description]
    require(not bare, f"fields without a description: {', '.join(bare)}")
    require(bool(subject.spec.summary.strip()), "the spec has no summary")


def check_spec_needs_no_heavy_library(subject: Subject) -> None:
    """The module of the spec can be imported without torch: planning a recipe must stay fast."""
    module = subject.spec.config.__module__
    loaded = _heavy_imports(module, str(Path(str(sys.modules[module].__file__)).parent))
    require(not loaded, f"importing {module} imports {loaded}")


@cache
def _heavy_imports(module: str, folder: str) -> str:
    # A plugin file is a module that only its own folder has.
    path = [*sys.path, folder] if "." not in module else sys.path
    code = (
        f"import importlib, sys; sys.path[:] = {path!r}; importlib.import_module({module!r}); "
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise CheckFailed(f"{module} does not import by itself: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


CONFIG_CHECKS = (
    check_example_survives_json,
    check_unknown_field_is_refused,
    check_fields_are_described,
    check_spec_needs_no_heavy_library,
)
