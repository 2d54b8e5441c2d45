"""Whole models end to end: from pixels to the first token and to answers of given lengths, as ratios to the first model.

Weights are random, so what is said is noise, but as long as asked: nothing stops early. Decoding is greedy, one token at
a time with a cache, run by transformers without compilation. A slow decode makes every ratio of totals look small, so
milliseconds per token stand beside them.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.bench.ceilings import measure_ceilings
from fusionkit.bench.machine import clock, facts, free_bytes
from fusionkit.bench.run import SCHEMA, Progress, Row, blank_row
from fusionkit.bench.table import milliseconds
from fusionkit.bench.timing import Quartiles, paired_ratios
from fusionkit.bench.variants import DTYPES, Setting
from fusionkit.errors import FusionkitError, UsageError
from fusionkit.geometry import Size
from fusionkit.model.modeling import FusionVLM
from fusionkit.model.prepare import prepare_config
from fusionkit.plugin import IMAGE_TOKEN, TokenLayout
from fusionkit.recipe import Recipe
from fusionkit.recipe.plan import Plan, plan

QUESTION = 32
"""Tokens of text beside the picture."""
IMAGE_ID, OTHER_ID, FIRST_WORD = 1, 2, 3
VISION, FIRST_TOKEN = "vision", "first_token"
AGAIN = " again"


@dataclass
class _Model:
    """One recipe, ready to answer about one picture."""

    name: str
    plan: Plan
    layout: TokenLayout
    model: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.layout.tokens + QUESTION

    @property
    def decoder_flops(self) -> int:
        return 0 if self.plan.language_model is None else self.plan.language_model.count_flops(self.tokens)


def parse_lengths(text: str) -> tuple[int, ...]:
    """(10, 30, 65) from `10,30,65`. Raises UsageError."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UsageError(f"--answers {text}: expected whole numbers of at least 1, for example 10,30,65")
    return tuple(sorted({int(part) for part in text.split(",")}))


def run_answers(
    recipes: Sequence[Recipe],
    setting: Setting,
    lengths: Sequence[int],
    crops: int | None = None,
    rounds: int = 5,
    on_progress: Progress = lambda what, done, total: None,
    ceiling_scale: float = 1.0,
) -> Iterator[Row]:
    """Time every recipe in shuffled rounds, the first twice; rows of all parts, with ratios to the first recipe.

    Raises: UsageError (no decoder, no such number of crops, no GPU), RecipeError. A model that does not fit is a row.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
    models = [_planned(recipe, crops) for recipe in recipes]
    product, copy = measure_ceilings(setting, ceiling_scale)
    ceil = {"tflops": product.best / 1e12, "gbps": copy.best / 1e9}
    for number, each in enumerate(models):
        on_progress(f"build {each.name}", number, len(models) + rounds)
        _build(each, models[0].model, setting)
    before = clock(setting.device)
    if models[0].model is not None:
        first = models[0]
        models.append(_Model(first.name + AGAIN, first.plan, first.layout, first.model, first.inputs))
    _run_rounds(
        models,
        lengths,
        rounds,
        setting,
        lambda done: on_progress("answers", len(recipes) + done, len(recipes) + rounds),
    )
    after = clock(setting.device)
    common = {
        "schema": SCHEMA,
        "run_id": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        **facts(setting.device),
        "ceil": ceil,
    }
    clocks = {"clock_mhz": [before[0], after[0]], "temperature_c": [before[1], after[1]]}
    for each in models:
        yield from _rows(each, models[0], common, setting, lengths, clocks)


def _planned(recipe: Recipe, crops: int | None) -> _Model:
    found = plan(recipe)
    if found.language_model is None:
        raise UsageError(f"--answers: recipe '{recipe.name}' has no language model")
    if crops is None:
        return _Model(recipe.name, found, found.largest_layout)
    sides = range(128, 4096, 128)
    for width in sides:
        for height in sides:
            layout = found.layout(Size(width, height))
            if layout.crops == crops:
                return _Model(recipe.name, found, layout)
            if layout.crops > crops:
                break
    raise UsageError(
        f"--crops {crops}: no picture gives recipe '{recipe.name}' so many crops (leave it out for the most)"
    )


def _build(each: _Model, first: Any, setting: Setting) -> None:
    """Build with random weights; a decoder of the first model's shape is that model's."""
    dtype, device = DTYPES[setting.dtype], torch.device(setting.device)
    need, free = each.plan.parameters * (dtype.itemsize + 1), free_bytes(setting.device)
    if free is not None and need > free:
        each.reason = f"skip: needs {need / 2**30:.1f} GiB for its weights, {free / 2**30:.1f} are free"
        return
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model: Any = FusionVLM(prepare_config(each.plan), pretrained=False, decoder_dtype=dtype)
        model = cast(nn.Module, model).to(dtype).eval()
        model.config.image_token_id = IMAGE_ID
        if first is not None and not model.layer_injectors() and not first.layer_injectors():
            mine, others = model.language_model, first.language_model
            if type(mine) is type(others) and _shape(mine) == _shape(others):
                model.language_model = others
    except FusionkitError as error:
        each.reason = f"fail: {type(error).__name__}: {error}"
        return
    each.model = model
    generator = torch.Generator().manual_seed(0)
    each.inputs = {
        "pixels": {
            name: torch.randn(each.layout.crops, 3, *stream.info.input_size, generator=generator).to(device, dtype)
            for name, stream in each.plan.streams.items()
        },
        "ids": torch.tensor(
            [
                [
                    *(IMAGE_ID if symbol == IMAGE_TOKEN else OTHER_ID for symbol in each.layout.symbols),
                    *[FIRST_WORD] * QUESTION,
                ]
            ],
            device=device,
        ),
        "index": torch.tensor(each.layout.patches, device=device),
    }


def _shape(decoder: Any) -> dict[str, Any]:
    """A decoder's config but for the rows of its embedding, of which every model here uses the first few."""
    return {name: value for name, value in decoder.config.to_dict().items() if name != "vocab_size"}


def _run_rounds(
    models: Sequence[_Model], lengths: Sequence[int], rounds: int, setting: Setting, on_round: Callable[[int], None]
) -> None:
    order, ready = random.Random(0), [each for each in models if each.model is not None]
    for number in range(rounds + 1):
        order.shuffle(ready)
        for each in ready:
            if each.reason:
                continue
            try:
                times = answer(each.model, each.inputs, lengths, setting.device)
            except Exception as error:  # whatever a model raises becomes its row; the others go on
                each.reason = f"fail: {type(error).__name__}: {error}"
                continue
            if number:  # the first is to fold, tune and fill caches
                for name, value in times.items():
                    each.seconds.setdefault(name, []).append(value)
        on_round(min(number, rounds))


@torch.no_grad()
def answer(model: Any, inputs: Mapping[str, Any], lengths: Sequence[int], device: str) -> dict[str, float]:
    """Seconds since the pixels: to the fused tokens (`vision`), the first token, and each length (`answer_N`)."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    encoded = model.fuse_all(model.encode_streams(inputs["pixels"]))
    found = {VISION: now() - start}
    output = model(
        input_ids=inputs["ids"],
        mm_encoder_outputs=encoded,
        visual_index=inputs["index"],
        use_cache=True,
        logits_to_keep=1,
    )
    token: Tensor = output.logits[:, -1:].argmax(-1)
    found[FIRST_TOKEN] = now() - start
    for count in range(1, max(lengths) + 1):
        if count > 1:
            # An image token would ask for a picture; ids beyond the words never occur.
            token = token.clamp(min=FIRST_WORD)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
        if count in lengths:
            found[f"answer_{count}"] = now() - start
    return found


def _rows(
    each: _Model, reference: _Model, common: Row, setting: Setting, lengths: Sequence[int], clocks: Row
) -> Iterator[Row]:
    vision = each.plan.flops(each.layout.crops)
    size = DTYPES[setting.dtype].itemsize
    parts = [VISION, FIRST_TOKEN, *(f"answer_{count}" for count in lengths)]
    for part in parts:
        row = blank_row(common, setting, "model", each.name.removesuffix(AGAIN))
        row |= {
            "variant": part + ("_again" if each.name.endswith(AGAIN) else ""),
            "computes": "model",
            "shape": {
                "crops": each.layout.crops,
                "tokens": each.tokens,
                "visual_tokens": len(each.layout.patches),
                "parameters": each.plan.parameters,
            },
            "flops": vision + (0 if part == VISION else each.decoder_flops),
            "bytes_min": each.plan.parameters * size,
            **clocks,
        }
        if each.reason:
            row |= {"status": each.reason[:4], "reason": each.reason[6:]}
        else:
            seconds = each.seconds[part]
            row |= {"status": "ok", "rounds": len(seconds)}
            row["ms"] = Quartiles.of([1e3 * value for value in seconds]).to_dict()
            if part in (VISION, FIRST_TOKEN):
                row["tflops"] = row["flops"] / Quartiles.of(seconds).p50 / 1e12
            if each is not reference and not reference.reason:
                ratios = Quartiles.of(paired_ratios(seconds, reference.seconds[part]))
                row["ratio"] = {"vs": reference.name, **ratios.to_dict()}
        yield row


_FIXED = ("crops", "tokens", "TFLOP", "FLOP ratio", "vision ms", "first token ms")


def answer_table(rows: Sequence[Row], lengths: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and one line for every recipe; the second run of the first is the noise."""
    columns = ("recipe", *_FIXED, *(f"{count} tokens ms" for count in lengths), "ms / token", "note")
    lines = []
    names = list(dict.fromkeys((row["address"], row["variant"].endswith("_again")) for row in rows))
    base = next(row["flops"] for row in rows if row["variant"] == FIRST_TOKEN)
    for address, again in names:
        mine = {
            row["variant"].removesuffix("_again"): row
            for row in rows
            if row["address"] == address and row["variant"].endswith("_again") == again
        }
        first = mine[FIRST_TOKEN]
        longest = mine[f"answer_{max(lengths)}"]
        rate = "-"
        if first["ms"] is not None and max(lengths) > 1:
            rate = f"{(longest['ms']['p50'] - first['ms']['p50']) / (max(lengths) - 1):.3g}"
        lines.append(
            (
                address + (" (again)" if again else ""),
                str(first["shape"]["crops"]),
                str(first["shape"]["tokens"]),
                f"{first['flops'] / 1e12:.3g}",
                f"{first['flops'] / base:.3f}",
                _milliseconds(mine[VISION]),
                _milliseconds(first),
                *(_milliseconds(mine[f"answer_{count}"]) for count in lengths),
                rate,
                "" if first["status"] == "ok" else f"{first['status']}: {first['reason']}",
            )
        )
    return columns, lines


def _milliseconds(row: Row) -> str:
    """Median, and the median ratio to the reference."""
    if row["ms"] is None:
        return "-"
    return milliseconds(row["ms"]["p50"]) + ("" if row["ratio"] is None else f" ({row['ratio']['p50']:.3f}x)")
