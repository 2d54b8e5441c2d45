"""The bench harness: what it counts, what it refuses, what its rows say. Never how long anything takes."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import exit_code
from temper_block import TEMPER
from torch import Tensor, nn

from fusionkit.bench import timing, variants
from fusionkit.bench.case import Case
from fusionkit.bench.cases import cases_from_names, cases_from_recipe
from fusionkit.bench.counting import count
from fusionkit.bench.machine import free_bytes
from fusionkit.bench.peers import PEERS, Peer, UnsuitableError
from fusionkit.bench.run import Row, costs, run
from fusionkit.bench.shape import Shape, parse_shape
from fusionkit.bench.subject import build_awake, make_arguments
from fusionkit.bench.table import COLUMNS, NUMBERS, cells, markdown
from fusionkit.bench.timing import Quartiles, paired_ratios, run_rounds
from fusionkit.bench.variants import Setting, Variant, prepare, variants_of
from fusionkit.bench.work import Work, compare
from fusionkit.blocks.mixers.layer_sum import LayerSum
from fusionkit.errors import NumericsError, ShapeError, UnknownBlockError, UsageError
from fusionkit.geometry import Grid
from fusionkit.ops.orthogonal import skew_matrix
from fusionkit.plugin import FAMILIES, STEP_FAMILIES
from fusionkit.recipe import load_recipe

SHAPE = Shape(layers=3, grid=Grid(4, 4), width=16, memory_grid=Grid(3, 3), memory_width=8)
FIELDS = {
    *("schema", "run_id", "git", "fusionkit", "device", "kind", "threads", "python", "torch", "triton", "cuda", "ceil"),
    *("block", "address", "variant", "backend", "peer_of", "computes", "shape", "config", "dtype", "mode", "rounds"),
    *("ms", "ratio", "flops", "bytes_min", "tflops", "gbps", "roofline_frac", "peak_mib", "kernels", "maps", "err"),
    *("clock_mhz", "temperature_c", "status", "reason"),
}


def cases_of(name: str, options: dict[str, Any] | None = None, shape: Shape = SHAPE) -> list[Case]:
    return cases_from_names([name], shape, options)[0]


def measured(
    name: str, mode: str = "fwd", *, rounds: int = 1, against: Sequence[str] = (), **options: Any
) -> list[Row]:
    """A tiny run of one block."""
    dtype = options.pop("dtype", "fp32")
    cases = cases_of(name, options)
    return list(run(cases, Setting(mode, dtype), rounds=rounds, against=against, ceiling_scale=0.01))


def by_variant(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["variant"]: row for row in rows if row["block"] != "ceiling"}


def test_memory_that_torch_holds_back_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (5, 100)), ("memory_reserved", 60), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert free_bytes("cuda") == 45


def test_what_is_large_is_built_on_the_device_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = cases_from_recipe(load_recipe("builtin:tiny"), 2, ["vision"])[0]
    (step,) = cases_of("adapters/linear")
    found = []
    build = variants.build_awake
    monkeypatch.setattr(variants, "build_awake", lambda case: found.append(torch.get_default_device()) or build(case))
    for case in (whole, step):
        work = prepare(Variant("fusionkit", case), Setting(device="meta"))
        assert {tensor.device.type for tensor in work.results().values()} == {"meta"}
    assert [device.type for device in found] == ["meta", "cpu"]


def test_a_variant_that_shares_the_modules_leaves_what_others_folded_and_captured() -> None:
    (case,) = cases_from_recipe(load_recipe("builtin:tiny"), 2, ["vision"])[0]
    first = prepare(Variant("fusionkit", case), Setting())
    assert isinstance(first, Work)
    first.results()
    mixers = [part for part in first.module.modules() if isinstance(part, LayerSum)]
    folded = [mixer._folded for mixer in mixers]
    assert mixers
    assert None not in folded
    prepare(Variant("fusionkit_mix_chunk_4", case), Setting(), first.module)
    assert all(mixer._folded is kept for mixer, kept in zip(mixers, folded, strict=True))


# ------------------------------------------------------------------------------------------------- counts
def test_maps_are_evaluated_as_often_as_each_form_says() -> None:
    rows = by_variant(measured("mixers/orthogonal"))
    rows.pop("geotorch")  # its maps are its own
    assert {name: row["maps"] for name, row in rows.items()} == {
        "fusionkit": 0,
        "fusionkit_again": 0,
        "fusionkit_unfolded": 3,
        "torch_orthogonal": 3,
        "torch_orthogonal_cached": 0,
        "formula": 3,
        "formula_cached": 0,
    }


def test_a_shared_map_in_the_released_loop_is_evaluated_for_every_layer() -> None:
    assert by_variant(measured("mixers/orthogonal", share="encoder"))["torch_orthogonal"]["maps"] == 3
    rows = by_variant(measured("mixers/orthogonal_two_stage"))
    assert (rows["fusionkit"]["maps"], rows["fusionkit_unfolded"]["maps"], rows["released_form"]["maps"]) == (0, 2, 4)


def test_a_step_evaluates_maps_once_for_all_micro_batches() -> None:
    rows = by_variant(measured("mixers/orthogonal", "step"))
    assert (rows["fusionkit"]["maps"], rows["fusionkit_without_step"]["maps"]) == (3, 12)
    assert rows["formula"]["maps"] == 12


def test_peak_memory_is_what_one_call_allocates() -> None:
    class Two(nn.Module):
        def forward(self, layers: list[Tensor]) -> Tensor:
            return (layers[0] + 1) * 2

    work = Work(Two(), {"input": [torch.randn(1, 16, 64)]}, "fwd")
    # And a few bytes for the numbers 1 and 2.
    assert 0 <= count(work).peak_bytes - 2 * 16 * 64 * 4 < 64
    assert count(work).kernels is None


def test_costs_follow_from_the_plan() -> None:
    (case,) = cases_of("mixers/orthogonal", shape=Shape(layers=3, grid=Grid(4, 4), width=16, crops=2))
    products = 2 * 3 * 16 * 16 * 16 * 2
    params = 3 * 16 * 15 // 2 + 3 + 2 * 3 * 16
    tokens = 2 * (3 + 1) * 16 * 16
    assert costs(case, Setting()) == (products, 4 * (tokens + params))
    assert costs(case, Setting("fwdbwd")) == (3 * products, 8 * (tokens + params))
    assert costs(case, Setting("step", "bf16")) == (12 * products, 4 * (4 * tokens + params))


# ---------------------------------------------------------------------------------------------- exactness
@pytest.mark.parametrize("mode", ["fwd", "fwdbwd", "step"])
@pytest.mark.parametrize("block", sorted({peer.block for peer in PEERS}))
def test_peers_compute_the_same_function(block: str, mode: str) -> None:
    options = {"heads": 2} if "pool" in block or "connector" in block else {}
    rows = by_variant(measured(block, mode, **options))
    wrong = {name: row["reason"] for name, row in rows.items() if row["status"] == "fail"}
    assert not wrong
    done = [row for row in rows.values() if row["status"] == "ok"]
    assert any(row["peer_of"] == block for row in done)
    assert max(row["err"]["rel"] for row in done if row["err"]) < 2e-5
    for row in rows.values():
        known = ("inference only", "is not installed", "does not import here")
        assert row["status"] == "ok" or any(text in row["reason"] for text in known), row["reason"]


@pytest.mark.parametrize("options", [{"map": "exp"}, {"init": "haar", "width": 24}, {"init": "haar", "width": 8}])
def test_the_formula_covers_all_maps(options: dict[str, Any]) -> None:
    rows = by_variant(measured("mixers/orthogonal", against=["formula", "torch_orthogonal"], **options))
    assert rows["formula"]["err"]["rel"] < 5e-6
    if "width" in options:
        assert rows["torch_orthogonal"]["status"] == "skip"
        assert "are not square" in rows["torch_orthogonal"]["reason"]


def test_half_precision_is_compared_too() -> None:
    rows = by_variant(measured("mixers/orthogonal", dtype="bf16"))
    errors = {name: row["err"]["rel"] for name, row in rows.items() if row["status"] == "ok"}
    assert all(1e-4 < error < 2e-2 for error in errors.values()), errors


def test_skew_is_moved_to_a_trained_size_and_gates_are_open() -> None:
    (case,) = cases_of("mixers/orthogonal", shape=Shape(layers=2, width=96))
    skew: Any = build_awake(case).maps.skew  # type: ignore[union-attr]
    norms = torch.linalg.matrix_norm(skew_matrix(skew.detach(), 96), ord=2)
    assert bool(((norms > 0.7) & (norms < 1.3)).all()), norms
    gate: Any = build_awake(cases_of("rope_cross_attention")[0]).gate
    assert gate.tolist() == [0.5]


def test_torch_is_not_flattered_by_maps_at_zero() -> None:
    (case,) = cases_of("mixers/orthogonal")
    peer = next(each for each in variants_of(case, Setting()) if each.name == "torch_orthogonal")
    module: Any = prepare(peer, Setting()).module
    for projection in module.projections:
        assert projection.parametrizations["weight"].original.abs().max() > 0.01


def test_inputs_are_random_and_repeatable() -> None:
    (case,) = cases_of("mixers/orthogonal")
    first, second = (make_arguments(case, torch.float32, torch.device("cpu"))["input"] for _ in range(2))
    assert all(torch.equal(a, b) and a.std() > 0.8 for a, b in zip(first, second, strict=True))


def test_comparison_refuses_what_differs() -> None:
    good = {"output main": torch.ones(2, 3, dtype=torch.float64)}
    assert compare({"output main": torch.ones(2, 3)}, good, torch.float32).rel == 0
    for wrong, text in [
        ({"output main": torch.ones(2, 3) * 1.01}, "by 1.0e-02"),
        ({"output main": torch.full((2, 3), math.nan)}, "by nan"),
        ({"output main": torch.ones(3, 2)}, "shape"),
        ({}, "missing"),
    ]:
        with pytest.raises(NumericsError, match=text):
            compare(wrong, good, torch.float32)


# ------------------------------------------------------------------------------------- failures are rows
class _Wrong(nn.Module):
    def __init__(self, change: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.change, self.calls = change, 0
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, layers: list[Tensor]) -> Tensor:
        self.calls += 1
        return self.change(torch.cat(layers, dim=-1), self.calls)


def _raise(error: Exception) -> Tensor:
    raise error


def test_wrong_peers_are_rows_and_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(name: str, change: Callable[[Tensor, int], Tensor]) -> Peer:
        return Peer(name, "mixers/channel_concat", "for a test", lambda block, config: _Wrong(change))

    made = (
        peer("right", lambda x, calls: x),
        peer("off", lambda x, calls: x * 1.001),
        peer("broken", lambda x, calls: _raise(ValueError("no such thing"))),
        peer("unsuitable", lambda x, calls: _raise(UnsuitableError("only on Sundays"))),
        peer("tired", lambda x, calls: x if calls < 3 else _raise(RuntimeError("tired"))),
    )
    monkeypatch.setattr(variants, "peers_of", lambda address: made)
    rows = by_variant(measured("mixers/channel_concat", rounds=2))
    state = {name: (row["status"], row["ms"] is not None) for name, row in rows.items()}
    assert state == {
        "fusionkit": ("ok", True),
        "fusionkit_again": ("ok", True),
        "right": ("ok", True),
        "off": ("fail", False),
        "broken": ("fail", False),
        "unsuitable": ("skip", False),
        "tired": ("fail", False),
    }
    assert "differs from float64 by 1.0e-03" in rows["off"]["reason"]
    assert rows["broken"]["reason"] == "ValueError: no such thing"
    assert rows["unsuitable"]["reason"] == "only on Sundays"
    assert "fail: ValueError" in markdown(COLUMNS, map(cells, rows.values()), NUMBERS)


def test_rows_have_every_field_and_are_json() -> None:
    rows = measured("mixers/softmax_sum", rounds=2)
    assert [row["block"] for row in rows[:2]] == ["ceiling", "ceiling"]
    assert [row["address"] for row in rows if row["block"] == "ceiling"] == ["before", "before", "after", "after"]
    for row in rows:
        assert set(row) == FIELDS
        json.dumps(row, allow_nan=False)
        assert len(cells(row)) == len(COLUMNS)
    ours, again = by_variant(rows)["fusionkit"], by_variant(rows)["fusionkit_again"]
    assert ours["ratio"] is None
    assert again["ratio"]["vs"] == "fusionkit"
    assert ours["rounds"] == 2
    limit = max(ours["flops"] / ours["ceil"]["tflops"] / 1e12, ours["bytes_min"] / ours["ceil"]["gbps"] / 1e9)
    assert ours["roofline_frac"] == pytest.approx(limit / ours["ms"]["p50"] * 1e3, rel=0.01)


# -------------------------------------------------------------------------------------------------- rounds
def test_rounds_visit_all_once_in_changing_order() -> None:
    visits: list[str] = []

    def timed(work: Any) -> float:
        visits.append(work)
        return {"a": 1.0, "b": 2.0, "c": 4.0}[work]

    seconds = run_rounds({name: name for name in "abc"}, 6, timed)  # type: ignore[misc]
    rounds = [tuple(visits[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    assert seconds == {"a": [1.0] * 6, "b": [2.0] * 6, "c": [4.0] * 6}
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(2.0, 3.0, 4.0)


def test_short_calls_are_repeated_and_their_median_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 4e-3)
    times = iter([9e-3, 1e-3, 5e-3, 3e-3, 2e-3, 4e-3])
    found = run_rounds({"a": "a"}, 1, lambda work: next(times))  # type: ignore[dict-item]
    assert found == {"a": [3e-3]}


@pytest.mark.parametrize(("times", "kept"), [((0.3, 1e-2, 3e-2, 2e-2, 1e-2), 1.5e-2), ((0.7,), 0.7)])
def test_an_interrupted_first_call_is_not_taken_for_a_long_one(times: tuple[float, ...], kept: float) -> None:
    given = iter(times)
    found = run_rounds({"a": "a"}, 1, lambda work: next(given))  # type: ignore[dict-item]
    assert found == {"a": [pytest.approx(kept)]}


# --------------------------------------------------------------------------------------------------- cases
def test_shapes_are_read() -> None:
    found = parse_shape("layers=27, grid=24x12,width=1152,memory_grid=14x14,memory_width=1024,crops=2")
    assert found == Shape(27, Grid(24, 12), 1152, 2, Grid(14, 14), 1024)
    assert parse_shape("") == Shape()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth=3", "unknown 'depth'; expected layers, grid"),
        ("grid=24", "grid must be HEIGHTxWIDTH, got '24'"),
        ("layers=0", "layers must be a whole number of at least 1, got '0'"),
        ("layers=2,layers=3", "'layers' is given twice"),
    ],
)
def test_wrong_shapes_are_explained(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_shape(text)


def test_a_family_stands_for_its_blocks() -> None:
    names = [case.name for case in [*cases_of("mixer"), *cases_of("pooler/average_pool")]]
    assert {"mixers/orthogonal", "mixers/channel_concat", "poolers/average_pool"} <= set(names)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_measured(family: str) -> None:
    shape = Shape(layers=3, grid=Grid(4, 4), width=16, crops=2, text=48)
    cases, left_out = cases_from_names([family], shape)
    small = [case for case in cases if case.costs.params < 2_000_000]
    assert small
    rows = list(run(small, Setting(), left_out=left_out, rounds=1, against=["none"], ceiling_scale=0.01))
    for row in rows:
        if row["status"] != "ok":
            assert row["status"] == "skip", row["reason"]
            assert row["reason"]
    measured = {row["address"] for row in rows if row["variant"] == "fusionkit" and row["status"] == "ok"}

    if family in STEP_FAMILIES:
        assert measured == {case.name for case in cases}
    assert measured


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("mixers/orthogonall", {}, UnknownBlockError, "did you mean 'orthogonal"),
        ("mixers/orthogonal", {"share": "all"}, UsageError, "mixers/orthogonal: share: Input should be 'layer' or"),
        ("rope_cross_attention", {"heads": 5}, ShapeError, "5 heads do not divide the query width 16"),
    ],
)
def test_wrong_cases_are_explained(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        cases_of(name, options)


def test_a_recipe_gives_its_steps_on_its_shapes() -> None:
    cases, left_out = cases_from_recipe(load_recipe("builtin:tiny"), crops=2)
    assert not left_out
    assert [case.name for case in cases] == [
        "streams.semantic.encoder",
        "streams.semantic.steps.mix",
        "streams.spatial.encoder",
        "streams.spatial.steps.mix",
        "fusion.align",
        "fusion.project",
        "fusion.place",
        "injectors.visual",
        "language_model",
        "vision",
    ]
    assert cases[1].shape["inputs"]["input"]["width"] == 64
    assert {case.crops for case in cases} == {2}
    assert len(cases_from_recipe(load_recipe("builtin:tiny"), only=["orthogonal"])[0]) == 2
    with pytest.raises(UsageError, match=r"has no block 'fusion\.pool'; it has streams\.semantic"):
        cases_from_recipe(load_recipe("builtin:tiny"), only=["fusion.pool"])


def test_another_block_can_be_the_peer() -> None:
    rows = by_variant(measured("mixers/orthogonal", against=["mixers/softmax_sum"]))
    assert rows["mixers/softmax_sum"]["computes"] == "mixers/softmax_sum"
    assert cells(rows["mixers/softmax_sum"])[-1] == "another function"
    with pytest.raises(UsageError, match="--against numpy: no such peer; mixers/orthogonal has torch_orthogonal"):
        measured("mixers/orthogonal", against=["numpy"])


# ------------------------------------------------------------------------------------------------- command
def test_the_command_measures_a_third_partys_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusionkit.bench.ceilings.SIDE", {"cpu": 32})
    monkeypatch.setattr("fusionkit.bench.ceilings.COPY_BYTES", {"cpu": 4096})
    plugin = tmp_path / "bench_plugin.py"
    plugin.write_text(TEMPER.replace("my_block", plugin.stem))
    stored, drawn = tmp_path / "out.jsonl", tmp_path / "out.png"
    words = ("acme.temper", "mixers/softmax_sum", "--plugin", plugin, "--shape", "grid=4x4,width=16", "--rounds", 2)
    assert exit_code("bench", *words, "--json", stored, "--plot", drawn) == 0
    shown = capsys.readouterr()
    assert "adapters/acme.temper" in shown.out
    assert "the same block run twice differs by" in shown.out
    assert f"wrote {stored}" in shown.err
    rows = [json.loads(line) for line in stored.read_text().splitlines()]
    assert {row["variant"] for row in rows} == {"matmul", "copy", "fusionkit", "fusionkit_again", "fusionkit_unfolded"}
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a block, a family or a recipe"),
        (("mixers", "--device", "cuda"), "torch finds no CUDA device here"),
        (("mixers", "--plot", "out.doc"), "expected a name that ends in .png"),
        (("--recipe", "tiny", "--shape", "width=3"), "only crops= can be given with --recipe"),
    ],
)
def test_wrong_words_are_explained(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert exit_code("bench", *words) == 2
    assert message in capsys.readouterr().err


def test_matplotlib_is_imported_only_where_it_draws(repository: Path) -> None:
    for path in (repository / "fusionkit" / "bench").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            assert "matplotlib" not in ast.unparse(node) or not isinstance(node, ast.Import | ast.ImportFrom), path


# ----------------------------------------------------------------------------------------- stored results
def _compare(repository: Path) -> Any:
    spec = importlib.util.spec_from_file_location("compare", repository / "benchmarks" / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_runs_are_compared(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_runs = _compare(repository).main
    rows = measured("mixers/softmax_sum")
    for row in rows:
        if row["variant"] == "fusionkit_again":
            row["ratio"] |= {"p25": 0.99, "p50": 1.0, "p75": 1.01}

    def store(name: str, change: Callable[[Row], Row | None]) -> str:
        path = tmp_path / name
        changed = [change(json.loads(json.dumps(row))) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed if row is not None))
        return str(path)

    def slower(factor: float, busy: float = 1.0) -> Callable[[Row], Row]:
        def change(row: Row) -> Row:
            if row["variant"] == "fusionkit":
                row["ms"]["p50"] *= factor
                row["roofline_frac"] /= factor / busy
            return row

        return change

    old = store("old.jsonl", lambda row: row)
    assert compare_runs([old, old]) == 0
    assert compare_runs([old, store("slow.jsonl", slower(1.2)), "--fail-over", "10%"]) == 1
    assert "FAIL  mixers/softmax_sum fusionkit fp32 fwd: 1.200x the time" in capsys.readouterr().out
    assert compare_runs([old, store("slow.jsonl", slower(1.2)), "--fail-over", "25%"]) == 0
    assert compare_runs([old, store("busy.jsonl", slower(1.2, busy=1.2)), "--fail-over", "10%"]) == 0
    assert compare_runs([old, store("gone.jsonl", lambda row: None if row["variant"] == "fusionkit" else row)]) == 1
    assert compare_runs([old, store("other.jsonl", lambda row: {**row, "device": "another"})]) == 2


def test_tables_beside_the_results_are_what_is_stored(repository: Path) -> None:
    tables = _script(repository, "table")
    stored = sorted((repository / "benchmarks" / "results").rglob("*.jsonl"))
    assert stored
    for path in stored:
        text = (path.parent / "README.md").read_text(encoding="utf-8")
        assert f"]({path.name})" in text
        assert tables.table(path) in text, f"run `python benchmarks/table.py {path.relative_to(repository)}`"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(set(row) == FIELDS for row in rows)


def _script(repository: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_goals_in_the_readme_are_what_is_stored(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goals = _script(repository, "goals")
    text = (repository / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert goals.table() in text, "run `python benchmarks/goals.py`"
    assert goals.others() in text, "run `python benchmarks/goals.py`"
    monkeypatch.setattr(goals, "RESULTS", repository / "benchmarks" / "nowhere")
    lines = goals.table().splitlines()[2:]
    assert len(lines) == len(goals.GOALS)
    assert all(line.endswith("| not measured |  |") for line in lines)


def test_gpu_rows_are_refused_where_there_is_no_gpu(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _script(repository, "gpu_rows")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_rows.py"])
    assert script.main() == 2
    assert "not measured: torch finds no CUDA device here" in capsys.readouterr().err
    assert script.slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


def test_a_gpu_job_that_stumbles_costs_the_others_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script(repository, "gpu_rows")

    def stumble(setting: Setting) -> Any:
        yield {"status": "ok"}
        raise RuntimeError("CUDA error: out of memory")

    def go_on(setting: Setting) -> Any:
        yield {"status": "skip", "address": "a", "variant": "b", "reason": "c"}

    monkeypatch.setattr(script, "JOBS", (script.Job("one", stumble, stumble), script.Job("two", go_on, go_on)))
    monkeypatch.setattr("sys.argv", ["gpu_rows.py", "--rehearse", "--out", str(tmp_path)])
    assert script.main() == 1
    told = capsys.readouterr().err
    assert "one: fail: RuntimeError: CUDA error: out of memory" in told
    assert "two: skip: a b: c" in told
    assert [len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("one", "two")] == [1, 1]


def test_every_gpu_job_runs_in_small(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script(repository, "gpu_rows")
    monkeypatch.setattr("sys.argv", ["gpu_rows.py", "--rehearse", "--out", str(tmp_path), "--minutes", "60"])
    assert script.main() == 0, capsys.readouterr().err
    for job in script.JOBS:
        rows = [json.loads(line) for line in (tmp_path / f"{job.name}.jsonl").read_text().splitlines()]
        assert rows
        assert all(set(row) == FIELDS and row["kind"] == "cpu" for row in rows)
        assert {row["status"] for row in rows} <= {"ok", "skip"}, [row["reason"] for row in rows]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    ours = {row["variant"]: row for row in answers if row["address"] == "tiny"}
    assert list(ours) == ["vision", "first_token", "answer_2", "answer_3"]
    assert ours["vision"]["ms"]["p50"] < ours["first_token"]["ms"]["p50"] < ours["answer_3"]["ms"]["p50"]
    assert {row["ratio"]["vs"] for row in ours.values()} == {"tiny_semantic"}
    assert ours["first_token"]["flops"] > ours["vision"]["flops"]


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    row = by_variant(measured("mixers/orthogonal", against=["geotorch"]))["geotorch"]
    assert (row["status"], row["reason"]) == ("skip", "geotorch is not installed (pip install geotorch)")


def test_backends_are_rows_beside_the_default() -> None:
    (case,) = cases_of("rope_cross_attention", {"heads": 2})
    rows = by_variant(
        list(run([case], Setting(), rounds=1, against=["none"], backends=["eager", "graph"], ceiling_scale=0.01))
    )
    assert (rows["fusionkit[eager]"]["status"], rows["fusionkit[eager]"]["backend"]) == ("ok", "eager")
    assert rows["fusionkit[eager]"]["err"]["rel"] < 1e-6
    assert "CUDA graphs need a CUDA device" in rows["fusionkit[graph]"]["reason"]
    (plain,) = cases_of("mixers/softmax_sum")
    rows = by_variant(list(run([plain], Setting(), rounds=1, backends=["flash"], ceiling_scale=0.01)))
    assert rows["fusionkit[flash]"]["reason"] == "backend flash: the block has no attention of fusionkit's"
    with pytest.raises(UsageError, match="--backend fast: unknown; expected some of sdpa"):
        list(run([plain], Setting(), backends=["fast"]))


def test_no_round_begins_when_the_time_is_up() -> None:
    rows = by_variant(list(run(cases_of("mixers/softmax_sum"), Setting(), rounds=9, seconds=0.0, ceiling_scale=0.01)))
    assert {row["rounds"] for row in rows.values()} == {1}
