"""Find and open the source of a recipe: a path, `builtin:NAME`, `DIST:NAME` or a Python mapping; follow `extends`.

Everything is found by file and metadata; no package is imported to find its recipes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit import discovery, registry
from fusionkit.errors import Problem, RecipeError, RecipeValidationError
from fusionkit.recipe.mapping_source import from_mapping
from fusionkit.recipe.nearest import nearest
from fusionkit.recipe.source import read_text, shorten
from fusionkit.recipe.tree import Leaf, Table

MAX_EXTENDS = 5
EXTENDS = "extends"
SUFFIXES = (".yaml", ".yml", ".json")
BUILTIN = "builtin"

_SHIPPED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):([a-z0-9_]+)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that was read: its tree, what errors call it, the file it is and, if shipped, the prefix of its name."""

    tree: Table
    name: str
    file: Path | None
    prefix: str = ""


def open_chain(source: str | Path | Mapping[str, Any]) -> list[Table]:
    """The trees of a recipe and of what it extends, the recipe itself first.

    Raises: RecipeError.
    """
    opened = open_source(source)
    trees, files = [opened.tree], [opened.file]
    while (asked := opened.tree.entries.pop(EXTENDS, None)) is not None:
        problem = Problem(asked.origin.source, asked.origin.line, asked.origin.column, EXTENDS, "")
        if not isinstance(asked, Leaf) or not isinstance(asked.value, str):
            raise _invalid(problem, "must be one recipe: builtin:NAME, DISTRIBUTION:NAME or a relative path")
        opened = _extended(asked.value, opened, problem)
        if opened.file in files:
            raise _invalid(problem, f"goes round in a circle: {opened.name} is extended already")
        if len(trees) > MAX_EXTENDS:
            raise _invalid(problem, f"extends through more than {MAX_EXTENDS} recipes")
        trees.append(opened.tree)
        files.append(opened.file)
    return trees


def open_source(source: str | Path | Mapping[str, Any]) -> Opened:
    """Read one source. Raises: RecipeError."""
    if isinstance(source, Mapping):
        return Opened(from_mapping(source, "<dict>"), "<dict>", None)
    if not isinstance(source, str | Path):
        raise _invalid(
            Problem("recipe", 0, 0, "", ""),
            f"is a {type(source).__name__}",
            "pass a path, builtin:NAME, or the recipe as a dict",
        )
    text = str(source)
    asked = Problem(shorten(text.splitlines()[0]) if text else "recipe", 0, 0, "", "")
    if "\n" in text or "\0" in text or not text:
        raise _invalid(asked, "is no path", "pass a path, builtin:NAME, or the recipe as a dict")
    if isinstance(source, str) and (shipped := _SHIPPED.fullmatch(source)):
        return _read(_find_shipped(shipped[1], shipped[2], asked), source, asked, prefix=shipped[1])

    def near() -> str:
        like = nearest(Path(source).stem, _names(_builtin_folder()))
        return f"did you mean builtin:{like}?" if like else ""

    return _read(Path(source), text, asked, near)


def _extended(text: str, by: Opened, problem: Problem) -> Opened:
    """Open what `by` extends: a shipped recipe, or a file inside the folder of `by`."""
    if shipped := _SHIPPED.fullmatch(text):
        return _read(_find_shipped(shipped[1], shipped[2], problem), text, problem, prefix=shipped[1])
    path = Path(text)
    if _URL.match(text) or ":" in text:
        raise _invalid(problem, f"'{shorten(text)}' is no recipe", "expected builtin:NAME, DISTRIBUTION:NAME or a path")
    if by.file is None:
        raise _invalid(problem, "a dict has no folder for a path to start from", "extend builtin:NAME")
    if path.suffix not in SUFFIXES:
        raise _invalid(problem, f"'{shorten(text)}' does not end with {' or '.join(SUFFIXES)}")
    folder = by.file.parent
    if path.is_absolute() or ".." in path.parts or "\\" in text or not _is_inside(folder / path, folder):
        raise _invalid(
            problem, f"'{shorten(text)}' leads out of the recipe's folder", "copy the file beside the recipe"
        )

    def near() -> str:
        like = nearest(path.name, (other.name for other in folder.glob("*.*")))
        return f"did you mean '{like}'?" if like else ""

    if by.prefix:
        return _read(folder / path, f"{by.prefix}:{path.with_suffix('')}", problem, near, prefix=by.prefix)
    return _read(folder / path, str(Path(by.name).parent / path), problem, near)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether the path stays in the folder when symbolic links are followed; a circle of links does not."""
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):
        return False


def _read(path: Path, name: str, asked: Problem, near: Callable[[], str] = str, *, prefix: str = "") -> Opened:
    """Read a recipe file; `asked` says where it was asked for, `near()` what else may be meant if there is none."""
    # Imported here so that a recipe given as a dict, and every plain import, does without the YAML library.
    from fusionkit.recipe.yaml_subset import parse_yaml

    shown = f"'{shorten(name)}' " if asked.address else ""
    try:
        text = read_text(path, name)
    except FileNotFoundError as error:
        raise _invalid(asked, f"{shown}no such file", near()) from error
    except IsADirectoryError as error:
        raise _invalid(asked, f"{shown}is a folder, not a recipe file") from error
    except OSError as error:
        raise _invalid(asked, f"{shown}cannot be read: {error.strerror}") from error
    return Opened(parse_yaml(text, name), name, path.resolve(), prefix)


# ---------------------------------------------------------------------------------------------------- shipped
def _find_shipped(prefix: str, name: str, asked: Problem) -> Path:
    """The file of `prefix:name`; `asked` says where it was asked for."""
    folder = _builtin_folder() if prefix == BUILTIN else _installed_folder(prefix, asked)
    if folder is None:
        raise _invalid(asked, f"the folder of {prefix}:{name} is not on the path", f"reinstall {prefix}")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = _names(folder)
        like = nearest(name, known)
        near = _elsewhere(name) or ([f"{prefix}:{like}"] if like else [])
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise _invalid(asked, f"no recipe {prefix}:{name}", hint)
    return path


def _elsewhere(name: str) -> list[str]:
    """Recipes of that very name that other installed distributions bring."""
    usable = [each for each in registry.scan().recipe_folders if each.state == "ok" and each.name != BUILTIN]
    folders = {each.name: discovery.package_folder(each.target) for each in usable}
    return [f"{prefix}:{name}" for prefix, folder in sorted(folders.items()) if folder and name in _names(folder)]


def _builtin_folder() -> Path | None:
    return discovery.package_folder("fusionkit.builtin_recipes")


def _installed_folder(prefix: str, asked: Problem) -> Path | None:
    """The recipe folder that an installed distribution brings under that prefix, or under its own name."""
    folders = registry.scan().recipe_folders
    found = [each for each in folders if prefix == each.name or discovery.normalised(prefix) == each.distribution]
    usable = [each for each in found if each.state == "ok"]
    if usable:
        return discovery.package_folder(usable[0].target)
    if found:
        raise _invalid(asked, f"the recipes of {found[0].owner} cannot be used: {found[0].reason}")
    known = sorted({each.name for each in folders if each.state == "ok"})
    raise _invalid(asked, f"no installed distribution '{prefix}' brings recipes", f"there are {', '.join(known)}")


def _names(folder: Path | None) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder is not None else []


def _invalid(asked: Problem, message: str, hint: str = "") -> RecipeError:
    problem = Problem(asked.source, asked.line, asked.column, asked.address, message, hint)
    return RecipeValidationError([problem]) if asked.address else RecipeError([problem])
