"""Who may import whom: one direction, held by reading every import in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fusionkit"

FACTS = ("errors", "geometry", "sample", "plugin")
HELPERS = ("architectures", "hub", "pictures")
BELOW_MODEL = (*FACTS, *HELPERS, "discovery", "registry", "recipe", "ops", "blocks")
BELOW_TOOLS = (*BELOW_MODEL, "model", "data", "train", "evaluate")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "geometry": ("errors",),
    "sample": ("errors", "geometry"),
    # `ops` for Tokens only, on first use: authors find in one place all that they need.
    "plugin": ("errors", "geometry", "sample", "ops"),
    "architectures": ("errors",),
    "hub": ("errors",),
    "pictures": ("errors", "geometry"),
    "discovery": ("errors",),
    "registry": (*FACTS, "discovery"),
    "recipe": (*FACTS, "architectures", "discovery", "pictures", "registry"),
    "ops": ("errors", "geometry"),
    "blocks": (*FACTS, *HELPERS, "ops"),
    "model": BELOW_MODEL,
    "data": (*BELOW_MODEL, "model"),
    "train": (*BELOW_MODEL, "model", "data"),
    "evaluate": (*BELOW_MODEL, "model", "data", "train"),
    "analysis": BELOW_TOOLS,
    "bench": BELOW_TOOLS,
    "sweep": BELOW_TOOLS,
    "testing": BELOW_TOOLS,
    "cli": (*BELOW_TOOLS, "analysis", "bench", "sweep", "testing", "fusionkit"),
    # The public names, each imported when it is first used; and `python -m fusionkit`.
    "fusionkit": ("model", "ops", "recipe", "registry"),
    "__main__": ("cli",),
}
"""For every part of the package the other parts it may import. A new part needs a line here, with thought."""

SAME_PART = {"auto": "model", "facts": "plugin"}
"""Modules that belong to a part though they stand beside it: `import fusionkit.auto` is for people to write, and what
`facts` holds is imported from `plugin`."""

SPECS_MAY_IMPORT = (*FACTS, "architectures")
FORBIDDEN_IN_SPECS = {"torch", "numpy", "timm", "transformers", "PIL"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """`fusionkit.blocks.mixers.parts` -> `blocks`; the package itself is `fusionkit`."""
    names = module.split(".")
    return SAME_PART.get(names[1], names[1]) if len(names) > 1 else "fusionkit"


def family_of(module: str) -> str:
    """`fusionkit.blocks.mixers.parts` -> `mixers`; empty for what is no block."""
    names = module.split(".")
    return names[2] if len(names) > 2 and names[1] == "blocks" else ""


def name_of(path: Path) -> str:
    names = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every import, wherever it stands: (line, module). A name taken from a package counts as a module if it is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if is_module(whole) else node.module


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def faults(path: Path) -> Iterator[str]:
    module = name_of(path)
    part, family = part_of(module), family_of(module)
    if part not in MAY_IMPORT:
        yield f"{module}: no line in MAY_IMPORT says what it may import"
        return
    is_specs = part == "blocks" and path.stem == "specs"
    for line, imported in imports_of(path):
        where = f"{module}:{line} imports {imported}"
        top = imported.split(".")[0]
        if is_specs and top in FORBIDDEN_IN_SPECS:
            yield f"{where}: specs are read without any library"
        if top != "fusionkit":
            continue
        target = part_of(imported)
        allowed = SPECS_MAY_IMPORT if is_specs else MAY_IMPORT[part]
        if target == part == "blocks" and family and family_of(imported) != family:
            yield f"{where}: a block imports no other family; nested blocks are passed in"
        elif target != part and target not in allowed:
            yield f"{where}: {part} may import {', '.join(allowed) or 'nothing'}"


def test_imports_point_one_way() -> None:
    found = [fault for path in modules() for fault in faults(path)]
    assert not found, "\n" + "\n".join(found)


def test_the_table_itself_has_no_circle() -> None:
    done: set[str] = set()

    def visit(part: str, above: tuple[str, ...]) -> None:
        assert part not in above, f"circle: {' -> '.join((*above, part))}"
        if part not in done:
            for other in MAY_IMPORT[part]:
                if other != "fusionkit":  # the public names are lazy: nothing is imported with them
                    visit(other, (*above, part))
            done.add(part)

    for part in MAY_IMPORT:
        visit(part, ())


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("ops/x.py", "from fusionkit.blocks.mixers import parts", "ops may import errors, geometry"),
        ("ops/x.py", "def f():\n    import fusionkit.model.build", "ops may import errors, geometry"),
        ("blocks/mixers/x.py", "from fusionkit import registry", "blocks may import"),
        ("blocks/mixers/x.py", "from fusionkit.blocks.poolers import specs", "imports no other family"),
        ("blocks/mixers/specs.py", "import torch.nn", "without any library"),
        ("blocks/mixers/specs.py", "from fusionkit.ops.tokens import Tokens", "blocks may import errors, geometry, "),
        ("evaluate/x.py", "from fusionkit.cli.output import note", "evaluate may import"),
        ("news/x.py", "", "no line in MAY_IMPORT"),
    ],
)
def test_the_rule_catches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, text: str, fault: str) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "fusionkit")
    for name in ("registry.py", "blocks/mixers/parts.py", "blocks/poolers/specs.py", "cli/output.py", path):
        file = tmp_path / "fusionkit" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    wrong = tmp_path / "fusionkit" / path
    wrong.write_text(text)
    found = list(faults(wrong))
    assert len(found) == 1
    assert fault in found[0]


def test_the_flagship_uses_only_public_roads() -> None:
    found = [str(path) for path in modules() if "come_vl" in ast.unparse(without_text(path))]
    assert not found, f"recipes name come_vl, code never does: {found}"


def without_text(path: Path) -> ast.AST:
    """The code without docstrings and texts: help may give `come_vl` as an example."""

    class NoText(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.Constant:
            return ast.Constant("") if isinstance(node.value, str) else node

        def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
            return ast.Constant("")

    return NoText().visit(ast.parse(path.read_text(encoding="utf-8")))


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("blocks/*/specs.py")), ids=lambda path: path.parent.name)
def test_annotations_of_configs_are_no_text(path: Path) -> None:
    """Pydantic compiles each annotation that is text; `fusionkit validate` is to answer at once."""
    assert "from __future__ import annotations" not in path.read_text(encoding="utf-8")
