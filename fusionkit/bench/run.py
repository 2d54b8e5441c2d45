"""A run: ceilings first, then every case with all its variants, then the ceilings again. Everything becomes a row."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from fusionkit.bench.case import AnyCase, Case, LeftOut, Whole
from fusionkit.bench.ceilings import Ceiling, measure_ceilings
from fusionkit.bench.counting import Counts, count
from fusionkit.bench.host import HostWork
from fusionkit.bench.machine import clock, facts, free_bytes
from fusionkit.bench.peers import UnsuitableError
from fusionkit.bench.timing import Quartiles, paired_ratios, run_rounds, timer
from fusionkit.bench.variants import CONTROL, DTYPES, REFERENCE, Setting, Variant, is_host, prepare, variants_of
from fusionkit.bench.work import MICRO_BATCHES, Error, Work, compare, exact
from fusionkit.errors import UsageError
from fusionkit.plugin import LanguageModelInfo

SCHEMA = 1
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass
class _Contender:
    """What is known of a variant so far; `status` other than ok carries a reason."""

    variant: Variant
    work: Work | HostWork | None = None
    error: Error | None = None
    counts: Counts | None = None
    seconds: list[float] = field(default_factory=list)
    status: str = "ok"
    reason: str = ""

    def fail(self, error: Exception) -> None:
        self.status = "skip" if isinstance(error, UnsuitableError) else "fail"
        self.reason = str(error) if isinstance(error, UnsuitableError) else f"{type(error).__name__}: {error}"
        self.work = None


def run(
    cases: Sequence[AnyCase],
    setting: Setting,
    *,
    left_out: Sequence[LeftOut] = (),
    rounds: int = 5,
    seconds: float | None = None,
    against: Sequence[str] = (),
    backends: Sequence[str] = (),
    on_progress: Progress = lambda what, done, total: None,
    ceiling_scale: float = 1.0,
) -> Iterator[Row]:
    """Measure; rows come as soon as a case is done. `on_progress(what, done, total)` counts rounds.

    On a CPU, whose other users come and go, the limits are measured again beside the rounds of each case: its rows hold
    the better ones of just before and just after. On a GPU those of the start hold for the run.

    No round of a case begins when `seconds` have passed since its first, so the `rounds` of a row may be fewer.

    Raises: UsageError before anything is measured; what goes wrong later is in the rows.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    planned = [(case, variants_of(case, setting, against, backends)) for case in cases]
    common = {"schema": SCHEMA, "run_id": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), **facts(setting.device)}
    on_progress("ceilings", 0, rounds * len(cases))
    ceilings = measure_ceilings(setting, ceiling_scale)
    common["ceil"] = start = _limits(ceilings)

    def limits_now() -> dict[str, float]:
        if setting.device == "cuda":
            return start
        return _limits(measure_ceilings(setting, ceiling_scale))

    yield from (_ceiling_row(common, setting, ceiling, "before") for ceiling in ceilings)
    for left in left_out:
        yield blank_row(common, setting, left.block, left.name, status="skip", reason=left.reason)
    for number, (case, variants) in enumerate(planned):

        def on_round(done: int, name: str = case.name, before: int = number * rounds) -> None:
            on_progress(name, before + done, rounds * len(cases))

        def on_check(variant: str, name: str = case.name, before: int = number * rounds) -> None:
            on_progress(f"{name}: checking {variant}", before, rounds * len(cases))

        yield from _run_case(case, variants, setting, (rounds, seconds), common, limits_now, on_check, on_round)
        gc.collect()  # the next case may be as large
    yield from (_ceiling_row(common, setting, each, "after") for each in measure_ceilings(setting, ceiling_scale))


def _run_case(
    case: AnyCase,
    variants: Sequence[Variant],
    setting: Setting,
    budget: tuple[int, float | None],
    common: Mapping[str, Any],
    limits_now: Callable[[], dict[str, float]],
    on_check: Callable[[str], None],
    on_round: Callable[[int], None],
) -> list[Row]:
    contenders = [_Contender(variant) for variant in variants]
    references: dict[str, dict[str, torch.Tensor]] = {}
    first: Work | HostWork | None = None
    for contender in contenders:
        try:
            if contender.variant.name == CONTROL and first is not None:
                ours = contenders[0]
                contender.work, contender.error, contender.counts = first, ours.error, ours.counts
                continue
            on_check(contender.variant.name)
            _make_ready(contender, setting, references, first)
            first = first or contender.work
        except Exception as error:  # a block or peer may raise anything; it becomes its row
            contender.fail(error)
    references.clear()
    on_round(0)
    works = {contender.variant.name: contender.work for contender in contenders if contender.work is not None}
    limits = limits_now() if works else common["ceil"]
    before = clock(setting.device)
    found = run_rounds(works, budget[0], timer(torch.device(setting.device)), on_round, seconds=budget[1])
    after = clock(setting.device)
    later = limits_now() if works else limits
    common = {**common, "ceil": {name: max(limits[name], later[name]) for name in limits}}
    for contender in contenders:
        timed = found.get(contender.variant.name, [])
        if isinstance(timed, Exception):
            contender.fail(timed)
        else:
            contender.seconds = timed
    reference = next((each.seconds for each in contenders if each.variant.name == REFERENCE), [])
    clocks = {"clock_mhz": [before[0], after[0]], "temperature_c": [before[1], after[1]]}
    return [
        blank_row(common, setting, case.address, case.name, **clocks, **_result(contender, reference, setting, common))
        for contender in contenders
    ]


def _make_ready(
    contender: _Contender,
    setting: Setting,
    references: dict[str, dict[str, torch.Tensor]],
    first: Work | HostWork | None,
) -> None:
    """Build, compare with float64, count; only what passes is timed."""
    variant = contender.variant
    case, address = variant.case, variant.case.address
    if not is_host(case):
        _require_memory(case, setting)
    built = first.module if isinstance(first, Work) else None
    work = prepare(variant, setting, built)
    if isinstance(work, Work):
        deep = _is_deep(case)
        if address not in references:
            # A block that has run may have folded; one as large as an encoder is not built twice.
            plain = work if deep or variant.name == REFERENCE else prepare(Variant(REFERENCE, case), setting)
            references[address] = exact(cast(Work, plain).module, work.arguments, setting.mode, in_place=deep)
        results = work.results()
        if _is_same(variant):
            contender.error = compare(results, references[address], DTYPES[setting.dtype], deep=deep)
        contender.counts = count(work)
    contender.work = work


def _limits(ceilings: Sequence[Ceiling]) -> dict[str, float]:
    product, copy = ceilings
    return {"tflops": product.best / 1e12, "gbps": copy.best / 1e9}


def _is_same(variant: Variant) -> bool:
    """Whether it computes the function of its block."""
    return variant.peer is None or variant.peer.same(variant.case.config)  # type: ignore[union-attr]  # steps only


def _is_deep(case: AnyCase) -> bool:
    """Whether it is an encoder, a decoder or a whole vision side: many layers, and large."""
    return isinstance(case, Whole) or case.site.info is not None


def _require_memory(case: AnyCase, setting: Setting) -> None:
    """Raises UnsuitableError where the weights would not fit in float64; for a small block, beside its own."""
    need = case.costs.params * (8 if _is_deep(case) else DTYPES[setting.dtype].itemsize + 8)
    free = free_bytes(setting.device)
    if free is not None and need > free:
        raise UnsuitableError(
            f"needs {need / 2**30:.1f} GiB to check its weights in float64, {free / 2**30:.1f} are free"
        )


def _result(contender: _Contender, reference: Sequence[float], setting: Setting, common: Mapping[str, Any]) -> Row:
    """The part of a row that is the variant's own."""
    variant, counts, error = contender.variant, contender.counts, contender.error
    flops, moved = costs(variant.case, setting)
    known = flops + moved > 0 and _is_same(variant)  # without its own formula there is no share of a limit
    found: Row = {
        "variant": variant.name,
        "peer_of": variant.peer_of or None,
        "computes": variant.case.address if _is_same(variant) else variant.name,
        "backend": variant.backend or "eager",
        "shape": variant.case.shape,
        "config": variant.case.options,
        "rounds": len(contender.seconds),
        "flops": flops if known else None,
        "bytes_min": moved if known else None,
        "peak_mib": None if counts is None else round(counts.peak_bytes / 2**20, 3),
        "kernels": None if counts is None else counts.kernels,
        "maps": None if counts is None else counts.maps,
        "err": None
        if error is None
        else {"max_abs": error.max_abs, "rel": error.rel, "where": error.where, "ref": "f64"},
        "status": contender.status,
        "reason": contender.reason or None,
    }
    if contender.status != "ok":
        return found
    seconds = Quartiles.of(contender.seconds)
    limit = max(flops / (common["ceil"]["tflops"] * 1e12), moved / (common["ceil"]["gbps"] * 1e9))
    found |= {
        "ms": Quartiles.of([1e3 * value for value in contender.seconds]).to_dict(),
        "tflops": flops / seconds.p50 / 1e12 if known else None,
        "gbps": moved / seconds.p50 / 1e9 if known else None,
        "roofline_frac": limit / seconds.p50 if known else None,
    }
    if variant.name != REFERENCE and len(reference) == len(contender.seconds):
        ratios = Quartiles.of(paired_ratios(contender.seconds, reference))
        found["ratio"] = {"vs": REFERENCE, **ratios.to_dict()}
    return found


def costs(case: AnyCase, setting: Setting) -> tuple[int, int]:
    """FLOPs and least bytes of the function, whatever a variant does: by formula, for all crops; 0, 0 without one.

    A backward is two forwards' FLOPs. Bytes: tokens in and out once per micro-batch, parameters once, and the gradients
    of all of these in training modes. Making orthogonal maps is in neither, so a share of the roofline in training is
    of the mixing alone.
    """
    if is_host(case):
        return 0, 0
    per_crop, size = case.costs, DTYPES[setting.dtype].itemsize
    # A decoder's costs are for a text; nothing in it is by the crop.
    times = 1 if isinstance(case, Case) and isinstance(case.site.info, LanguageModelInfo) else case.crops
    forward, tokens, weights = times * per_crop.flops, times * per_crop.numbers * size, per_crop.params * size
    if setting.mode == "fwd":
        return forward, tokens + weights
    batches = MICRO_BATCHES if setting.mode == "step" else 1
    return 3 * forward * batches, 2 * (tokens * batches + weights)


def blank_row(common: Mapping[str, Any], setting: Setting, block: str, address: str, **own: Any) -> Row:
    """A row with every field of the schema, in order; what does not apply is null."""
    blank = dict.fromkeys(_FIELDS)
    given = {"block": block, "address": address, "backend": "eager", "dtype": setting.dtype, "mode": setting.mode}
    return {**common, **blank, **given, **own}


_FIELDS = (
    "block", "address", "variant", "backend", "peer_of", "computes", "shape", "config", "dtype", "mode", "rounds", "ms",
    "ratio", "flops", "bytes_min", "tflops", "gbps", "roofline_frac", "peak_mib", "kernels", "maps", "err", "clock_mhz",
    "temperature_c", "status", "reason",
)  # fmt: skip


def _ceiling_row(common: Mapping[str, Any], setting: Setting, ceiling: Ceiling, when: str) -> Row:
    return blank_row(
        common,
        setting,
        "ceiling",
        when,
        variant=ceiling.name,
        rounds=len(ceiling.seconds),
        ms=Quartiles.of([1e3 * value for value in ceiling.seconds]).to_dict(),
        flops=ceiling.flops,
        bytes_min=ceiling.bytes,
        tflops=ceiling.best / 1e12 if ceiling.flops else None,
        gbps=ceiling.best / 1e9 if ceiling.bytes else None,
        status="ok",
    )
