"""Every number in the README's tables stands in the result file beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = json.loads((ROOT / "fusionkit/checkpoints/tiny/scores.json").read_text(encoding="utf-8"))
FUSED = json.loads((ROOT / "benchmarks/results/cpu/fused_vs_single.json").read_text(encoding="utf-8"))["summary"]
DEMO = json.loads((ROOT / "benchmarks/results/cpu/tiny_demo.json").read_text(encoding="utf-8"))
METRICS = ("box_accuracy", "point_accuracy", "count_accuracy")


def row(start: str) -> str:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {start} |")]
    return line


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


@pytest.mark.parametrize(
    ("title", "scores", "data"),
    [
        ("unseen pictures", SHIPPED["scores"], "held_out_pictures"),
        ("wordings never trained", SHIPPED["scores"], "held_out_phrasings"),
        ("pairs of colour and shape never trained", SHIPPED["scores"], "held_out_combinations"),
        ("control: shown the wrong picture", SHIPPED["wrong_picture"]["scores"], "held_out_pictures"),
    ],
)
def test_scores_of_the_shipped_checkpoint(title: str, scores: list[dict[str, object]], data: str) -> None:
    found = [entry for entry in scores if entry["data"] == data and entry["metric"] in METRICS]
    assert found
    for entry in found:
        assert f"{entry['value']:.3f} ({entry['low']:.3f}-{entry['high']:.3f})" in row(title), entry


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("`tiny_demo`: both, fused", "tiny_demo"),
        ("`tiny_semantic` alone", "tiny_semantic"),
        ("`tiny_spatial` alone", "tiny_spatial"),
        ("fused minus semantic, paired", "tiny_demo minus tiny_semantic"),
        ("fused minus spatial, paired", "tiny_demo minus tiny_spatial"),
        ("fused, shown the wrong picture", "tiny_demo, wrong picture"),
    ],
)
def test_fused_against_single_encoders(title: str, name: str) -> None:
    for metric in METRICS:
        value = FUSED[name][metric]
        assert f"{value['mean']:.3f} ± {value['half_width']:.3f}" in row(title), metric


def test_scores_of_the_demo() -> None:
    _, found, rest = README.partition("`make demo` trains `tiny_demo`")
    told = " ".join(rest.partition("### ")[0].split())
    assert found
    assert f"{DEMO['seconds']['training']} s on two idle cores" in told
    for entry in DEMO["scores"]:
        if entry["metric"] in METRICS and entry["data"] in ("held_out_pictures", "held_out_combinations"):
            assert f"{entry['value']:.3f} ({entry['low']:.3f}-{entry['high']:.3f})" in told, entry
