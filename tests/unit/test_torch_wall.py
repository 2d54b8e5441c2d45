"""The torch-free wall: what the quick verbs and modules import, and how long the quick verbs take."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from fusionkit.cli.main import VERBS
from fusionkit.discovery import FAMILY_NAMES

HEAVY = ("torch", "numpy", "timm", "transformers", "PIL", "accelerate", "matplotlib")

TORCH_FREE = (
    "fusionkit",
    "fusionkit.plugin",
    "fusionkit.architectures",
    "fusionkit.registry",
    "fusionkit.recipe",
    "fusionkit.recipe.plan",
    "fusionkit.model.runtime",
    "fusionkit.model.folder",
    "fusionkit.model.card",
    *(f"fusionkit.blocks.{family}.specs" for family in FAMILY_NAMES),
    *(verb.module for verb in VERBS.values()),
)

REPORT = """
import atexit, json, sys
atexit.register(lambda: sys.stderr.write("\\n" + json.dumps(sorted(sys.modules))))
"""


def modules_after(code: str) -> set[str]:
    """The modules a fresh interpreter has imported when `code` has run."""
    done = subprocess.run([sys.executable, "-c", REPORT + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return set(json.loads(done.stderr.splitlines()[-1]))


def modules_after_command(*words: str) -> set[str]:
    return modules_after(f"from fusionkit.cli.main import run\nrun({list(words)!r})")


def test_list_imports_neither_torch_nor_pydantic_nor_typer() -> None:
    assert not modules_after_command("list") & {*HEAVY, "pydantic", "typer", "rich", "yaml"}


def test_import_fusionkit_imports_nothing() -> None:
    ours = {name for name in modules_after("import fusionkit") if name.startswith("fusionkit")}
    assert ours == {"fusionkit"}


def test_the_torch_free_modules_are() -> None:
    code = "from importlib import import_module\n"
    code += "".join(f"import_module({name!r})\n" for name in TORCH_FREE)
    assert not modules_after(code) & set(HEAVY)


def test_every_spec_loads_without_torch() -> None:
    code = (
        "from fusionkit import registry\n"
        "for entry in registry.scan().blocks:\n"
        "    assert registry.spec(entry.family, entry.name).name == entry.name\n"
    )
    assert not modules_after(code) & set(HEAVY)


@pytest.mark.parametrize(
    "words",
    [
        ("validate", "builtin:come_vl"),
        ("plan", "builtin:come_vl"),
        ("export", "builtin:come_vl"),
        ("show", "mixer/orthogonal"),
        ("show", "come_vl"),
        ("lock", "builtin:tiny"),
        ("diff", "builtin:tiny", "builtin:tiny"),
        ("schema",),
    ],
    ids=lambda words: words[0],
)
def test_verbs_before_the_build_do_without_torch(words: tuple[str, ...]) -> None:
    assert not modules_after_command(*words) & set(HEAVY)


# ------------------------------------------------------------------------------------------------- time
def seconds(command: list[str]) -> float:
    """The processor time of one run: unlike the time on the clock, it hardly depends on who else uses the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("words", "budget"),
    [(("list",), 0.120), (("validate", "builtin:come_vl"), 0.200), (("plan", "builtin:tiny"), 0.200)],
)
def test_quick_verbs_answer_at_once(words: tuple[str, ...], budget: float) -> None:
    """Warm, the median of several runs, within half as much again: a slip is caught, a busy machine is not.

    On a machine that is slower than the one the budgets are for, they grow as a bare Python does.
    """
    tool = str(Path(sys.executable).with_name("fusionkit"))
    bare = [sys.executable, "-c", "pass"]
    seconds([tool, *words])
    runs = [(seconds(bare), seconds([tool, *words])) for _ in range(7)]
    slowness = max(1.0, statistics.median(start for start, _ in runs) / 0.020)
    assert statistics.median(total for _, total in runs) <= 1.5 * budget * slowness
