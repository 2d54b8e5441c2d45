"""Stage 0: which blocks and recipes are installed, read from metadata alone. Nothing is imported, nothing is cached.

A distribution brings a block by an entry point in the group `fusionkit.<family>`, and a folder of recipes by one in
`fusionkit.recipes`. Whether a block can be used is decided here, by names only; whether it loads is found out when
somebody asks for it.

Names: `[a-z][a-z0-9_]*` belongs to fusionkit, other distributions write `vendor.name`. When two distributions claim a
name, neither can be used. The environment variable FUSIONKIT_BLOCK holds distributions to leave out: `dist1,dist2`.
"""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from fusionkit.errors import UsageError

FAMILY_NAMES = (
    "encoders",
    "selectors",
    "mixers",
    "adapters",
    "poolers",
    "connectors",
    "injectors",
    "language_models",
    "objectives",
    "box_tokenizers",
    "croppers",
    "datasets",
    "metrics",
)
"""The families in the order people meet them. `plugin.FAMILIES` says what each is for; a test keeps the two equal."""

STEP_NAMES = ("mixers", "adapters", "poolers", "connectors")
"""The families whose names share one space, because a step says only its `type`."""

RECIPES = "recipes"
OWNER = "fusionkit"
BLOCK_VARIABLE = "FUSIONKIT_BLOCK"
PREFIX = "fusionkit."

_OWN_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HEADER = {key: re.compile(rf"^{key}:[ \t]*(\S+)", re.MULTILINE | re.IGNORECASE) for key in ("Name", "Version")}
_VENDOR_NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point.

    `state` is ok, conflict, reserved-name, invalid-name, unknown-family or blocked; `reason` says why it is not ok.
    """

    family: str
    name: str
    target: str
    distribution: str
    version: str
    state: str = "ok"
    reason: str = ""

    @property
    def address(self) -> str:
        """`family/name`."""
        return f"{self.family}/{self.name}"

    @property
    def owner(self) -> str:
        """Distribution and version, as messages name them."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class RecipeEntry:
    """One shipped recipe: `prefix:name` is how recipes and commands call it. `state` is as for blocks."""

    prefix: str
    name: str
    path: Path
    distribution: str
    version: str
    state: str = "ok"
    reason: str = ""

    @property
    def address(self) -> str:
        """`prefix:name`, for example `builtin:tiny`."""
        return f"{self.prefix}:{self.name}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A distribution whose metadata cannot be read, or of which several versions are on the path."""

    distribution: str
    message: str
    broken: bool


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at the installed metadata found."""

    blocks: tuple[Entry, ...]
    recipe_folders: tuple[Entry, ...]
    troubles: tuple[Trouble, ...]


def scan() -> Scan:
    """Read the metadata of every installed distribution that has entry points for fusionkit."""
    entries, troubles = _read_entries()
    judged = sorted(_judge(entries), key=_order)
    return Scan(
        blocks=tuple(entry for entry in judged if entry.family != RECIPES),
        recipe_folders=tuple(entry for entry in judged if entry.family == RECIPES),
        troubles=tuple(troubles),
    )


def recipes(scanned: Scan | None = None) -> list[RecipeEntry]:
    """Every installed recipe, sorted; a folder that cannot be found gives one entry that says so."""
    found = []
    for folder in (scanned or scan()).recipe_folders:
        where = package_folder(folder.target)
        if where is None:
            missing = (
                f"package {folder.target} of {folder.owner} is not on the path, or has no __init__.py; reinstall it"
            )
            found.append(_recipe(folder, "*", Path(), "missing", missing))
        else:
            found += [
                _recipe(folder, path.stem, path, folder.state, folder.reason) for path in sorted(where.glob("*.yaml"))
            ]
    return found


def _recipe(folder: Entry, name: str, path: Path, state: str, reason: str) -> RecipeEntry:
    return RecipeEntry(folder.name, name, path, folder.distribution, folder.version, state, reason)


def package_folder(package: str) -> Path | None:
    """The folder of a package, found without importing it or its parents; None if it is not on the path."""
    search: list[str] | None = None
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            specs = [finder.find_spec(name, search) for finder in sys.meta_path]
        # A folder without `__init__.py` inside a package has a path that Python works out from its imported parent.
        except KeyError:
            return None
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or not spec.submodule_search_locations:
            return None
        search = list(spec.submodule_search_locations)
    return Path(search[0]) if search else None


def family_name(text: str) -> str:
    """The family that a person means by its plural or singular name; raises UsageError."""
    plurals = {name[:-1]: name for name in FAMILY_NAMES}
    if text in FAMILY_NAMES:
        return text
    if text in plurals:
        return plurals[text]
    from difflib import get_close_matches

    near = get_close_matches(text, [*FAMILY_NAMES, *plurals], n=1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    raise UsageError(f"unknown family '{text}'; {guess}expected one of {', '.join(FAMILY_NAMES)}")


def normalised(distribution: str) -> str:
    """A distribution's name as installers compare it: lower case, runs of `-`, `_` and `.` as one dash."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_own_name(name: str) -> bool:
    """Whether the name belongs to fusionkit itself."""
    return _OWN_NAME.fullmatch(name) is not None


def is_vendor_name(name: str) -> bool:
    """Whether the name is `vendor.name`."""
    return _VENDOR_NAME.fullmatch(name) is not None


# ------------------------------------------------------------------------------------------------ reading
def _read_entries() -> tuple[list[Entry], list[Trouble]]:
    entries: list[Entry] = []
    troubles: list[Trouble] = []
    used: dict[str, str] = {}
    for distribution in metadata.distributions():
        try:
            # A name and a version cost a parse each; only distributions that speak to fusionkit are worth it.
            if f"[{PREFIX}" not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name, version = _identity(distribution)
            if name not in used:
                first = metadata.distribution(name)
                used[name] = _identity(first)[1]
                entries += _entries_of(first, name, used[name])
            if version != used[name]:
                message = f"{version} is on the path too, hidden by {used[name]}, which comes first"
                troubles.append(Trouble(name, message, broken=False))
        except Exception as error:  # one distribution with damaged metadata must not hide the others
            where = getattr(distribution, "_path", "a distribution")
            message = f"metadata cannot be read: {type(error).__name__}: {error}; reinstall it"
            troubles.append(Trouble(str(where), message, broken=True))
    return entries, troubles


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Name and version; raises ValueError if the metadata has none."""
    # The files that importlib.metadata reads. Its parser takes in the whole README too, which is most of such a file.
    text = next((text for file in ("METADATA", "PKG-INFO", "") if (text := distribution.read_text(file))), "")
    found = {key: _HEADER[key].search(text.partition("\n\n")[0]) for key in _HEADER}
    name, version = found["Name"], found["Version"]
    if name is None or version is None:
        raise ValueError("no Name or Version")
    return normalised(name[1]), version[1]


def _entries_of(distribution: metadata.Distribution, name: str, version: str) -> Iterator[Entry]:
    for point in distribution.entry_points:
        if point.group.startswith(PREFIX):
            yield Entry(point.group.removeprefix(PREFIX), point.name, point.value, name, version)


# ------------------------------------------------------------------------------------------------ judging
def _judge(entries: list[Entry]) -> Iterator[Entry]:
    """Every entry with its state: first what is wrong with it alone, then clashes among those that are left."""
    blocked = {normalised(name) for name in os.environ.get(BLOCK_VARIABLE, "").replace(",", " ").split()}
    alone = [_judge_alone(entry, blocked) for entry in entries]
    claims: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in alone:
        if entry.state == "ok":
            claims[_name_space(entry), entry.name].append(entry)
    for entry in alone:
        rivals = [other for other in claims[_name_space(entry), entry.name] if other is not entry]
        if entry.state == "ok" and rivals:
            others = " and ".join(sorted(f"{other.address} of {other.owner}" for other in rivals))
            reason = f"also claimed by {others}; uninstall one, or set {BLOCK_VARIABLE}=DISTRIBUTION to leave one out"
            yield replace(entry, state="conflict", reason=reason)
        else:
            yield entry


def _name_space(entry: Entry) -> str:
    return "steps" if entry.family in STEP_NAMES else entry.family


def _judge_alone(entry: Entry, blocked: set[str]) -> Entry:
    if entry.distribution in blocked:
        return replace(entry, state="blocked", reason=f"left out by {BLOCK_VARIABLE}")
    if entry.family not in (*FAMILY_NAMES, RECIPES):
        known = ", ".join(f"{PREFIX}{name}" for name in (*FAMILY_NAMES, RECIPES))
        reason = f"no such group; expected one of {known}"
        return replace(entry, state="unknown-family", reason=reason)
    if entry.family == RECIPES:
        reserved, valid = entry.name == "builtin", is_own_name(entry.name.replace("-", "_"))
        rule = f"'builtin' belongs to fusionkit; call it {entry.distribution}"
    else:
        reserved, valid = is_own_name(entry.name), is_own_name(entry.name) or is_vendor_name(entry.name)
        rule = f"names without a dot belong to fusionkit; call it vendor.{entry.name}"
    if not valid:
        reason = "expected vendor.name in lower-case letters, digits and underscores"
        return replace(entry, state="invalid-name", reason=reason)
    if reserved and entry.distribution != OWNER:
        return replace(entry, state="reserved-name", reason=rule)
    return entry


def _order(entry: Entry) -> tuple[int, str, str, str]:
    place = FAMILY_NAMES.index(entry.family) if entry.family in FAMILY_NAMES else len(FAMILY_NAMES)
    return (place, entry.family, entry.name, entry.distribution)
