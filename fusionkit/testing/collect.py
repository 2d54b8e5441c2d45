"""From the registry to pytest: which checks a block gets, and one test id for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fusionkit import registry
from fusionkit.errors import FusionkitError
from fusionkit.plugin import FAMILIES, STEP_FAMILIES, BlockSpec, LayerInjectorConfig
from fusionkit.testing.subjects import (
    CheckFailed,
    EncoderSubject,
    InjectorSubject,
    LayerInjectorSubject,
    StepSubject,
    Subject,
)

Examples = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Check:
    """One check of one block with one of its examples; call it to run it.

    Raises: CheckFailed when the block does not keep the contract, or whatever the block itself raises.
    """

    id: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def checks_for(spec: BlockSpec, examples: Sequence[Mapping[str, Any]] | None = None) -> list[Check]:
    """All checks of a block, for each of its examples (or of those given instead)."""
    found: list[Check] = []
    for number, example in enumerate(spec.examples if examples is None else examples):
        subject = _subject_class(spec)(spec, example)
        for function in _functions(spec):
            name = function.__name__.removeprefix("check_")
            found.append(Check(f"{spec.address}[{number}]-{name}", _bound(function, subject)))
    return found


def collect_checks(
    distribution: str | None = None, families: Sequence[str] | None = None, examples: Examples | None = None
) -> Iterator[Check]:
    """The checks of every installed block, or of one distribution's, or of some families.

    `examples` replaces the examples of a block, by its address, where those of its spec need what a test machine
    does not have (files, for one). A block that does not load is one failing check.
    """
    given = dict(examples or {})
    for family in families or FAMILIES:
        for name in registry.names(family):
            address = f"{family}/{name}"
            if distribution is not None and _owner(family, name) != _normal(distribution):
                continue
            try:
                spec = registry.spec(family, name)
            except FusionkitError as error:
                yield Check(f"{address}-loads", _failing(error))
                continue
            yield from checks_for(spec, given.pop(address, None))
    if given:
        raise ValueError(f"examples for {', '.join(given)}: no such block among those checked")


def parametrize_with_checks(
    distribution: str | None = None,
    *,
    families: Sequence[str] | None = None,
    examples: Examples | None = None,
    known_failures: Mapping[str, str] | None = None,
) -> Any:
    """A pytest decorator: the test gets one `check` for each thing a block must do, and calls it.

    `known_failures` maps ids to reasons. They are strict: an id that passes, or that there is none of, fails.

    Example:
        >>> @parametrize_with_checks("acme-vision")  # doctest: +SKIP
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    known = dict(known_failures or {})
    parameters = []
    for check in collect_checks(distribution, families, examples):
        reason = known.pop(check.id, None)
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=CheckFailed)]
        parameters.append(pytest.param(check, id=check.id, marks=marks))
    for stale in known:
        error = CheckFailed(f"known failure {stale}: there is no such check")
        parameters.append(pytest.param(Check(stale, _failing(error)), id=stale))
    if not parameters:
        error = CheckFailed(f"no blocks to check (distribution {distribution or 'any'}, families {families or 'all'})")
        parameters.append(pytest.param(Check("nothing", _failing(error)), id="nothing"))
    return pytest.mark.parametrize("check", parameters)


# Family -> module of checks, and in it the tuple of checks and the mapping from guarantees to checks.
_MODULES = {
    **dict.fromkeys(STEP_FAMILIES, "steps"),
    **{name: name for name in FAMILIES if name not in STEP_FAMILIES},
}


def _functions(spec: BlockSpec) -> list[Callable[..., None]]:
    """The checks of a family, then one for each guarantee the block claims."""
    from fusionkit.testing.checks.configs import CONFIG_CHECKS

    module = import_module(f"fusionkit.testing.checks.{_MODULES[spec.family]}")
    stem = _MODULES[spec.family].removesuffix("s").upper()
    guarantees: dict[str, Callable[..., None]] = getattr(module, f"{stem}_GUARANTEES", {})
    if unchecked := sorted(spec.guarantees - set(guarantees)):
        raise CheckFailed(f"{spec.address} claims {', '.join(unchecked)}, which means nothing for {spec.family}")
    return [*CONFIG_CHECKS, *getattr(module, f"{stem}_CHECKS"), *(guarantees[name] for name in sorted(spec.guarantees))]


def _subject_class(spec: BlockSpec) -> type[Subject]:
    family = spec.family
    if issubclass(spec.config, LayerInjectorConfig):
        return LayerInjectorSubject
    if family in STEP_FAMILIES:
        return StepSubject
    if family == "language_models":
        from fusionkit.testing.checks.language_models import LanguageModelSubject

        return LanguageModelSubject
    if family == "objectives":
        from fusionkit.testing.checks.objectives import ObjectiveSubject

        return ObjectiveSubject
    return {"encoders": EncoderSubject, "injectors": InjectorSubject}.get(family, Subject)


def _bound(function: Callable[..., None], subject: Subject) -> Callable[[], None]:
    return lambda: function(subject)


def _failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _owner(family: str, name: str) -> str:
    try:
        return _normal(registry.distribution(family, name)[0])
    except FusionkitError:
        return ""


def _normal(distribution: str) -> str:
    """Distribution names as pip compares them."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
