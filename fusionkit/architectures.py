"""The generated table of architectures: what is known of named models without importing their library.

`architectures.json` has a section for each kind of model (`timm`, decoders of `transformers`, its vision towers), each
from name to facts. It is written by
`python -m fusionkit.testing.architectures --write`; a test regenerates it, and building checks every entry used.
Inside `asking_libraries()` names that are not listed are looked up in the library itself, which imports it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("architectures.json")

LIBRARIES: Mapping[str, str] = {
    "timm": "fusionkit.blocks.encoders.timm_facts:ask",
    "transformers": "fusionkit.blocks.language_models.hub_facts:ask",
    "transformers_vision": "fusionkit.blocks.encoders.tower_hub:ask",
}
"""Who to ask for a name that is not listed: `ask(name) -> facts`, in the form they have in the table."""

DECODER_MEASURE = "fusionkit.blocks.language_models.measured:measure"
"""Who to ask for a model type whose costs are not known without its library: `measure(facts) -> decoder`."""

_asking: ContextVar[bool] = ContextVar("asking", default=False)


@contextmanager
def asking_libraries() -> Iterator[None]:
    """Within it, facts of unlisted names come from the installed library; for `plan --meta` and other slow paths."""
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    table: Mapping[str, Mapping[str, Mapping[str, Any]]] = json.loads(PATH.read_text(encoding="utf-8"))
    return table


def names(library: str) -> list[str]:
    """Every listed name of `library`, sorted."""
    return sorted(_table()[library])


def resolve(library: str, name: str) -> str | None:
    """The listed name that `name` means: itself, or the one listed weight tag of an architecture; None if unlisted."""
    section = _table()[library]
    if name in section:
        return name
    tagged = [listed for listed in section if listed.startswith(f"{name}.")]
    return tagged[0] if len(tagged) == 1 else None


def facts(library: str, name: str) -> Mapping[str, Any] | None:
    """What is known of `name`, or None if it is not listed (and the library may not be asked)."""
    listed = resolve(library, name)
    if listed is not None:
        return _table()[library][listed]
    return _ask(library, name) if _asking.get() else None


@cache
def _ask(library: str, name: str) -> Mapping[str, Any]:
    module, function = LIBRARIES[library].split(":")
    answer: Mapping[str, Any] = getattr(import_module(module), function)(name)
    return answer


def measured_decoder(facts: Mapping[str, Any]) -> Any | None:
    """Shape and costs of the decoder that a transformers config describes; None if the library may not be asked."""
    return _measure(json.dumps(facts, sort_keys=True)) if _asking.get() else None


@cache
def _measure(facts: str) -> Any:
    module, function = DECODER_MEASURE.split(":")
    return getattr(import_module(module), function)(json.loads(facts))


def near(library: str, name: str, count: int = 3) -> list[str]:
    """Listed names that look like `name`, for error messages: weight tags of the same architecture first."""
    from difflib import get_close_matches

    section = names(library)
    tagged = [listed for listed in section if listed.split(".")[0] == name.split(".")[0]]
    similar = get_close_matches(name, section, n=count, cutoff=0.5)
    return list(dict.fromkeys([*tagged, *similar]))[:count]
