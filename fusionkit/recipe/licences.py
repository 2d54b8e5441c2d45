"""Licences of pretrained parts, and what a reader should know of them before use."""

from __future__ import annotations

from dataclasses import dataclass

PERMISSIVE = ("apache", "mit", "bsd", "cc0", "cc-by-4", "unlicense", "isc")
"""How licences begin that allow commercial use without further terms."""


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of one part of a model; `note` is empty when there is nothing to look out for."""

    address: str
    name: str
    licence: str

    @property
    def note(self) -> str:
        return licence_note(self.licence)


def licence_note(licence: str) -> str:
    """What to look out for. Reads the licence's name only: it is a warning, not advice."""
    name = licence.lower()
    if name.startswith("none"):
        return ""
    if not name or name.startswith(("unknown", "other")):
        return "unknown: look it up before use"
    if any(word in name for word in ("-nc", "non-commercial", "noncommercial", "research")):
        return "NON-COMMERCIAL"
    if name.startswith(PERMISSIVE):
        return ""
    return "OWN TERMS: read them before use; the download may be gated"
