"""Stages 1 and 2: from a family and a name to its `BlockSpec`, and from the spec to its factory.

Loading a spec imports the module its entry point names, which is torch-free; only `factory` imports the block itself.
One block is loaded for one request: a broken plugin fails for whoever asks for it and for nobody else.

Besides what is installed there are, for this process only, the specs of `--plugin` files and of `override`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from fusionkit import discovery
from fusionkit.discovery import Entry, Scan
from fusionkit.errors import AmbiguousBlockError, PluginApiError, PluginError, PluginLoadError, UnknownBlockError
from fusionkit.plugin import FAMILIES, STEP_FAMILIES, BlockSpec


@dataclass(frozen=True, slots=True)
class _Local:
    """A spec that was not installed but given to this process, and where it is from."""

    spec: BlockSpec
    distribution: str
    version: str


_loaded: dict[Entry, BlockSpec] = {}
_files: dict[tuple[str, str], _Local] = {}
_overrides: dict[tuple[str, str], list[_Local]] = {}
_snapshot: tuple[tuple[object, ...], Scan] | None = None


# ------------------------------------------------------------------------------------------------- public
def spec(family: str, name: str) -> BlockSpec:
    """The spec of a block, loaded if need be.

    Raises UnknownBlockError, AmbiguousBlockError, PluginLoadError or PluginApiError.
    """
    if local := _local(family, name):
        return local.spec
    return _load(_find(family, name))


def step_spec(name: str) -> BlockSpec:
    """The spec of a step, whose name is unique over the step families. Raises as `spec` does."""
    for _ in _twice():
        installed = {entry.family for entry in scan().blocks if entry.name == name}
        for family in STEP_FAMILIES:
            if family in installed or _local(family, name):
                return spec(family, name)
    raise UnknownBlockError(_unknown("steps", name))


def factory(spec: BlockSpec) -> Callable[..., Any]:
    """Import the block of a spec: what is called as `factory(config, site)`. Raises PluginLoadError."""
    owner = " ".join(distribution(spec.family, spec.name)) if _is_known(spec.family, spec.name) else "a local spec"
    with _load_errors(f"{spec.address} of {owner}", f"factory {spec.factory}"):
        made = _resolve(spec.factory)
    if not callable(made):
        raise PluginLoadError(
            f"{spec.address} of {owner}: factory {spec.factory} is a {type(made).__name__}, not callable"
        )
    return made  # type: ignore[no-any-return]


def names(family: str) -> list[str]:
    """The names of a family that can be used, sorted; from metadata, nothing is loaded."""
    found = {entry.name for entry in scan().blocks if entry.family == family and entry.state == "ok"}
    found |= {name for other, name in (*_files, *_overrides) if other == family}
    return sorted(found)


def distribution(family: str, name: str) -> tuple[str, str]:
    """Name and version of the distribution that brings a block; for a plugin file its path and the hash of its text."""
    if local := _local(family, name):
        return local.distribution, local.version
    entry = _find(family, name)
    return entry.distribution, entry.version


@contextmanager
def override(spec: BlockSpec) -> Iterator[BlockSpec]:
    """Use this spec for its family and name, in this process, until the `with` block ends; overrides nest.

    Example: `with fusionkit.override(MY_MIXER): model = fusionkit.build(recipe)`.
    """
    stack = _overrides.setdefault((spec.family, spec.name), [])
    stack.append(_Local(spec, "override", spec.factory))
    try:
        yield spec
    finally:
        stack.pop()
        if not stack:
            del _overrides[spec.family, spec.name]


def load_plugin_file(path: str | Path) -> tuple[BlockSpec, ...]:
    """Run a local Python file and register, for this process, every BlockSpec whose config it defines.

    The file is importable under its own name, so that a factory may be written `my_block:MyBlock`. Loading the same
    file again changes nothing. Raises PluginLoadError, AmbiguousBlockError or PluginApiError.
    """
    where = Path(path).resolve()
    module = _run_file(where, str(path))
    specs = tuple(
        value for value in vars(module).values() if isinstance(value, BlockSpec) and _defined_in(value, module)
    )
    if not specs:
        raise PluginLoadError(
            f"{path}: no BlockSpec found; assign one at the top level, with a config class of this file"
        )
    version = "sha256:" + hashlib.sha256(where.read_bytes()).hexdigest()[:12]
    for found in specs:
        _check_free(found, where, str(path))
        _files[found.family, found.name] = _Local(found, str(where), version)
    return specs


def scan() -> Scan:
    """The installed metadata, read anew when the search path, a folder on it or the set of blocked distributions changes."""
    global _snapshot
    key = (*((path, _changed(path)) for path in sys.path), os.environ.get(discovery.BLOCK_VARIABLE))
    if _snapshot is None or _snapshot[0] != key:
        _snapshot = (key, discovery.scan())
    return _snapshot[1]


def _changed(folder: str) -> int:
    """When something was last put into a folder of the path or taken out of it, as installers do; 0 if it is none."""
    try:
        return os.stat(folder or os.curdir).st_mtime_ns  # noqa: PTH116 - called often, and a Path costs more than the call
    except OSError:
        return 0


def last_frame(error: BaseException) -> str:
    """Where an error was raised, `file:line in function`, leaving out the machinery that imports; may be empty."""
    import traceback

    machinery = (__file__, "<frozen importlib", importlib.__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(machinery)]
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


# ------------------------------------------------------------------------------------------------ finding
def _local(family: str, name: str) -> _Local | None:
    stack = _overrides.get((family, name))
    return stack[-1] if stack else _files.get((family, name))


def _is_known(family: str, name: str) -> bool:
    return bool(_local(family, name) or _entries(family, name))


def _entries(family: str, name: str) -> list[Entry]:
    return [entry for entry in scan().blocks if entry.family == family and entry.name == name]


def _twice() -> Iterator[None]:
    """Once with the metadata as known, once read anew: the block may have been installed a moment ago."""
    global _snapshot
    yield
    _snapshot = None
    importlib.invalidate_caches()
    yield


def _find(family: str, name: str) -> Entry:
    """The one usable entry of that name, or the error that says why there is none."""
    if family not in FAMILIES:
        raise UnknownBlockError(f"unknown family '{family}'; expected one of {', '.join(FAMILIES)}")
    found: list[Entry] = []
    for _ in _twice():
        found = _entries(family, name)
        if usable := [entry for entry in found if entry.state == "ok"]:
            return usable[0]
    rivals = [entry for entry in found if entry.state == "conflict"]
    if rivals:
        raise AmbiguousBlockError(f"{family}/{name} of {rivals[0].owner}: {rivals[0].reason}")
    if found:
        reasons = "; ".join(f"{entry.owner}: {entry.state}: {entry.reason}" for entry in found)
        raise UnknownBlockError(f"{family}/{name} is installed but cannot be used ({reasons})")
    raise UnknownBlockError(_unknown(family, name))


def _unknown(family: str, name: str) -> str:
    """The message for a name nobody has, with near misses; it loads nothing."""
    from difflib import get_close_matches

    families = STEP_FAMILIES if family == "steps" else (family,)
    singular = "step" if family == "steps" else FAMILIES[family].singular
    known = sorted({known for each in families for known in names(each)})
    parts = [f"no {singular} called '{name}' is installed"]
    elsewhere = [other for other in FAMILIES if other not in families and name in names(other)]
    if near := get_close_matches(name, known, n=3):
        parts.append(f"did you mean {' or '.join(repr(each) for each in near)}?")
    elif elsewhere:
        parts.append(f"'{name}' is a {FAMILIES[elsewhere[0]].singular}")
    else:
        parts.append(f"there are {', '.join(known) or 'none'}")
    command = "fusionkit list" if family == "steps" else f"fusionkit list {family}"
    local = "; `--plugin FILE` brings those of a local file" if discovery.is_vendor_name(name) and not near else ""
    return "; ".join(parts) + f" (`{command}` shows all{local})"


# ------------------------------------------------------------------------------------------------ loading
def _load(entry: Entry) -> BlockSpec:
    if entry not in _loaded:
        with _load_errors(f"{entry.address} of {entry.owner}", f"entry point {entry.target}"):
            found = _resolve(entry.target)
        place = f"{entry.address} of {entry.owner}: {entry.target}"
        if not isinstance(found, BlockSpec):
            raise PluginLoadError(f"{place} is a {type(found).__name__}, expected a fusionkit.plugin.BlockSpec")
        if found.address != entry.address:
            raise PluginLoadError(f"{place} is the spec of {found.address}; name, `type` and family must agree")
        _loaded[entry] = found
    return _loaded[entry]


def _resolve(target: str) -> Any:
    """Import `package.module:Name` (dots allowed in the name)."""
    module, _, attributes = target.partition(":")
    if not attributes:
        raise ValueError(f"'{target}' is not package.module:Name")
    value: Any = import_module(module)
    for attribute in attributes.split("."):
        value = getattr(value, attribute)
    return value


@contextmanager
def _load_errors(plugin: str, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a plugin's code runs into an error that names the plugin."""
    try:
        yield
    except PluginApiError as error:
        raise PluginApiError(f"{plugin}: {error}") from error
    # Third-party code may raise anything on import, even SystemExit, and must not end the program that asked.
    except (Exception, SystemExit) as error:
        where = last_frame(error)
        place = f" (at {where})" if where else ""
        raise PluginLoadError(f"{plugin} does not load: {what}: {type(error).__name__}: {error}{place}") from error


# ------------------------------------------------------------------------------------------- plugin files
def _run_file(where: Path, shown: str) -> ModuleType:
    """Import a file under its stem, once."""
    name = where.stem
    if not where.is_file():
        raise PluginLoadError(f"{shown}: no such file; --plugin takes a Python file")
    if where.suffix != ".py" or not name.isidentifier():
        raise PluginLoadError(f"{shown}: a plugin file is called like a Python module, for example my_block.py")
    loaded = sys.modules.get(name)
    if loaded is not None and Path(str(getattr(loaded, "__file__", ""))).resolve() == where:
        return loaded
    known = loaded or importlib.util.find_spec(name)
    if known is not None and Path(str(getattr(known, "origin", None) or "")).resolve() != where:
        raise PluginLoadError(f"{shown}: a module called '{name}' exists already; rename the file")
    module_spec = importlib.util.spec_from_file_location(name, where)
    if module_spec is None or module_spec.loader is None:
        raise PluginLoadError(f"{shown}: Python has no loader for this file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        with _load_errors(f"plugin file {shown}", "running it"):
            module_spec.loader.exec_module(module)
    except PluginError:
        del sys.modules[name]
        raise
    return module


def _defined_in(found: BlockSpec, module: ModuleType) -> bool:
    """Whether the spec is the file's own and not one it imported to build on."""
    return found.config.__module__ == module.__name__


def _check_free(found: BlockSpec, where: Path, shown: str) -> None:
    """Refuse names that are not a plugin's to take."""
    if not discovery.is_vendor_name(found.name):
        raise PluginLoadError(
            f"{shown}: '{found.name}' is not vendor.name; names without a dot belong to fusionkit, "
            f"call it for example my.{found.name.rpartition('.')[2]}"
        )
    rivals = [f"{entry.owner}" for entry in _entries(found.family, found.name) if entry.state != "blocked"]
    earlier = _files.get((found.family, found.name))
    if earlier is not None and earlier.distribution != str(where):
        rivals.append(earlier.distribution)
    if rivals:
        raise AmbiguousBlockError(f"{shown}: {found.address} is also claimed by {' and '.join(rivals)}; rename one")
