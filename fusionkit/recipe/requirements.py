"""A recipe's `requires`: whether the installed distributions meet it, and whether it names all that are used."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

from fusionkit import registry
from fusionkit.discovery import OWNER, normalised
from fusionkit.errors import Problem
from fusionkit.recipe.tree import Items, Leaf, Origin, Table, child

if TYPE_CHECKING:
    from fusionkit.recipe.schema import Recipe


def check_requirements(tree: Table) -> list[Problem]:
    """A problem, with the command that solves it, for every requirement that is not met."""
    wanted = child(tree, "requires")
    if not isinstance(wanted, Items) or not wanted.values:
        return []
    found = []
    for index, node in enumerate(wanted.values):
        if isinstance(node, Leaf) and isinstance(node.value, str) and (fault := _fault(node.value)):
            found.append(_problem(node.origin, f"requires.{index}", *fault))
    return found


def unnamed_requirements(recipe: Recipe) -> list[str]:
    """What the recipe would have to require: installed distributions whose blocks it uses and does not name."""
    named = {normalised(re.split(r"[^\w.-]", text.strip())[0]) for text in recipe.requires}
    installed = {(entry.distribution, entry.version) for entry in registry.scan().blocks}
    found = set()
    for placed in recipe.blocks():
        spec = placed.spec()
        name, version = registry.distribution(spec.family, spec.name)
        if (name, version) in installed and name != OWNER and name not in named:
            found.add(f"{name}>={'.'.join(version.split('.')[:2])}")
    return sorted(found)


def _fault(text: str) -> tuple[str, str] | None:
    """(message, hint) if the requirement is not met, or is none."""
    # Few recipes require anything, and the parser is slow to import.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"'{text}' is not a requirement", "for example acme-sam2>=1.2"
    if requirement.url or requirement.marker or requirement.extras:
        return f"'{text}': only a distribution and its versions are allowed", f"write {requirement.name}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement} is not installed", f'pip install "{requirement}"'
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement} is needed, {version} is installed", f'pip install --upgrade "{requirement}"'
    return None


def _problem(origin: Origin, address: str, message: str, hint: str) -> Problem:
    return Problem(origin.source, origin.line, origin.column, address, message, hint)
