"""How one plugin file becomes a package: what needs torch goes into `block.py`, the rest into `spec.py`.

A file may hold everything at once, which is how blocks start. In a package the spec must import without torch, so the
top-level statements are divided: a statement belongs to the block if it imports a library, or uses something that
does. Text is moved, never rewritten, so comments stay where they were.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionkit import registry
from fusionkit.cli.plugin_package import Block, Draft, distribution_of
from fusionkit.errors import UsageError
from fusionkit.plugin import BlockSpec

LIGHT = (
    "fusionkit.plugin",
    "fusionkit.errors",
    "fusionkit.geometry",
    "fusionkit.sample",
    "pydantic",
    "typing_extensions",
)
"""What a spec may import besides the standard library."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A top-level statement: its text with the comments before it, the names it binds and those it uses."""

    text: str
    binds: frozenset[str]
    uses: frozenset[str]
    imports: bool
    heavy: bool


def from_file(path: Path, name: str | None) -> Draft:
    """The package of a plugin file, called after its first block unless `name` says otherwise.

    Raises UsageError when a spec cannot be separated from torch, and PluginLoadError when the file is no plugin.
    """
    specs = registry.load_plugin_file(path)
    distribution = distribution_of(name or specs[0].name)
    package = distribution.replace("-", "_")
    source = path.read_text(encoding="utf-8")
    docstring, future, parts = _read(source)
    heavy = _heavy(parts)
    light = [part for part in parts if part not in heavy]
    constants = _constants(light, specs, path)
    own = re.compile(rf"(['\"]){re.escape(path.stem)}:(\w+)")
    bound = {name for part in heavy for name in part.binds}

    def moved(match: re.Match[str]) -> str:
        return f"{match[1]}{package}.{'block' if match[2] in bound else 'spec'}:{match[2]}"

    wanted = _used(heavy) & {name for part in light if not part.imports for name in part.binds}
    spec_text = own.sub(moved, docstring + future + _joined(light, light))
    modules = {"spec.py": spec_text}
    if heavy:
        shared = [part for part in light if part.imports]
        names = sorted(wanted, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
        link = f"from {package}.spec import {', '.join(names)}\n" if names else ""
        imports = [part for part in parts if part.imports and (part in heavy or part in shared)]
        body = [part for part in heavy if not part.imports]
        text = _joined(imports, heavy) + link + _joined(body, body)
        modules["block.py"] = own.sub(
            moved, f'"""What needs torch. Imported only when a model is built."""\n{future}{text}'
        )
    blocks = [Block(spec.family, spec.name, f"{package}.spec:{constants[spec.address]}") for spec in specs]
    return Draft(distribution, specs[0].summary.rstrip("."), blocks, modules)


def _read(source: str) -> tuple[str, str, list[_Part]]:
    """The docstring, the imports from `__future__`, and the other statements of a file."""
    lines = source.splitlines(keepends=True)
    docstring = future = ""
    parts: list[_Part] = []
    end = 0
    for number, node in enumerate(ast.parse(source).body):
        last = node.end_lineno or node.lineno
        text, end = "".join(lines[end:last]), last
        if number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstring = text.lstrip("\n")
        elif isinstance(node, ast.ImportFrom) and node.module == "__future__":
            future += "\n" + text.lstrip("\n")
        else:
            parts.append(_part(node, text))
    return docstring, future, parts


def _part(node: ast.stmt, text: str) -> _Part:
    imported = _imported(node)
    inside = list(ast.walk(node))
    if imported is not None:
        binds = {(alias.asname or alias.name.split(".")[0]) for alias in node.names}  # type: ignore[attr-defined]
    else:
        named = getattr(node, "name", None)  # what is bound inside a function or class is its own affair
        stored = {each.id for each in inside if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        binds = stored if named is None else {named}
    uses = {each.id for each in inside if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
    heavy = imported is not None and not all(_is_light(module) for module in imported)
    # Tokens is the one name of fusionkit.plugin that holds tensors.
    heavy = heavy or (imported == ["fusionkit.plugin"] and binds == {"Tokens"})
    return _Part(text, frozenset(binds), frozenset(uses), imported is not None, heavy)


def _imported(node: ast.stmt) -> list[str] | None:
    """The modules that an import statement names; None for other statements."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else None


def _is_light(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names or any(
        module == light or module.startswith(f"{light}.") for light in LIGHT
    )


def _heavy(parts: Sequence[_Part]) -> list[_Part]:
    """The statements that import a library, and all that use one of them, directly or not."""
    heavy = {number for number, part in enumerate(parts) if part.heavy}
    while True:
        names = {name for number in heavy for name in parts[number].binds} | {"Tokens"}
        more = {number for number, part in enumerate(parts) if part.uses & names} - heavy
        if not more:
            return [parts[number] for number in sorted(heavy)]
        heavy |= more


def _constants(light: Iterable[_Part], specs: Sequence[BlockSpec], path: Path) -> dict[str, str]:
    """The name of every spec in the file; raises UsageError if a spec cannot do without torch."""
    module = sys.modules[path.stem]
    names = {value.address: name for name, value in vars(module).items() if any(value is spec for spec in specs)}
    free = {name for part in light for name in part.binds}
    for address, name in names.items():
        if name not in free:
            raise UsageError(
                f"{path}: {name} ({address}) uses something that imports a library; give its factory as text, "
                f'"{path.stem}:Name", and keep its config and planner to fusionkit.plugin and pydantic'
            )
    return names


def _used(parts: Iterable[_Part]) -> set[str]:
    return {name for part in parts for name in part.uses}


def _joined(parts: Sequence[_Part], users: Sequence[_Part]) -> str:
    """The text of the statements; imports bring only the names that somebody uses."""
    used = _used(users)
    texts = [_trimmed(part, used) if part.imports else part.text for part in parts]
    return "".join(text if text.endswith("\n") or not text else f"{text}\n" for text in texts)


def _trimmed(part: _Part, used: set[str]) -> str:
    """An import with the comments before it, of the names in `used` alone; empty if there are none."""
    if part.binds <= used:
        return part.text
    (node,) = ast.parse(part.text).body
    assert isinstance(node, ast.Import | ast.ImportFrom)
    node.names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
    before = "".join(part.text.splitlines(keepends=True)[: node.lineno - 1])
    return f"{before}{ast.unparse(node)}" if node.names else ""
