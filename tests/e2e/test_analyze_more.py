"""`fusionkit analyze` probe, redundancy, gates and correspond, as a person uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

DATA = "synthetic_scenes,seed=5"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((40 + 8 * number, 36), 60).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_probe_says_which_layers_ground_and_prints_a_recipe(
    fusionkit: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    entropy = fusionkit("analyze", "entropy", "small_vit,depth=3", photos, "-o", out)
    assert entropy.code == 0, entropy.err
    words = ("analyze", "probe", "small_vit,depth=3", DATA, "-o", out, "--samples", "24")
    told = fusionkit(*words, "--entropy", out / "entropy.json")
    assert told.code == 0, told.err
    assert "grounds boxes best" in told.out
    assert "trained on 18 samples of synthetic_scenes,seed=5, measured on 6 others." in told.out
    (report,) = json.loads((out / "probe.json").read_text())["encoders"].values()
    assert [entry["layer"] for entry in report["layers"]] == [1, 2, 3]
    assert all(0 < entry["entropy_share"] <= 1 for entry in report["layers"])
    assert all(entry["found"]["box"]["count"] == 6 for entry in report["layers"])
    assert (out / "probe.png").stat().st_size > 10_000
    pasted = yaml.safe_load(fusionkit(*words, "--paste").out)
    assert pasted["streams"]["small_vit"]["select"] == {"type": "list", "layers": report["suggestion"]}
    (tmp_path / "mine.yaml").write_text("schema: 1\nname: mine\n" + fusionkit(*words, "--paste").out)
    assert fusionkit("plan", tmp_path / "mine.yaml").code == 0


def test_redundancy_of_a_checkpoint_and_an_encoder(fusionkit: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = fusionkit(
        "analyze", "redundancy", "small_vit,depth=3", "checkpoint:tiny:spatial", photos, "-o", out, "--json"
    )
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert "square orthogonal map cannot change" in report["note"]
    plain, trained = report["encoders"].values()
    assert plain["layers"] == [1, 2, 3]
    for i in range(3):
        assert plain["cka"][i][i] == pytest.approx(1)
        assert plain["cosine"][i][i] == pytest.approx(1)
        assert plain["cka"][i] == pytest.approx([row[i] for row in plain["cka"]])
    assert set(plain["v"]) == {"identity", "random rotations", "random free"}
    assert next(iter(trained["v"])) == "its own (orthogonal)"


def test_gates_of_tiny_and_of_a_run_under_way(fusionkit: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = fusionkit("analyze", "gates", "checkpoint:tiny", photos, "-o", out, "--json")
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert set(report["gates"]) == {"fusion.align.gate"}
    assert len(report["reach"]["fusion.align"]["heads"]) == 4
    assert report["change"]["stream spatial"]["count"] == 5
    without = fusionkit("analyze", "gates", "checkpoint:tiny", "-o", out)
    assert without.code == 0
    assert "give a folder of pictures to see how far connectors look" in without.out
    running = tmp_path / "mine.partial"
    running.mkdir()
    rows = [
        {"stage": "a", "step": step, "loss": 1.0, "learned": {"fusion.x.gate": 0.3 - step / 100, "mix": [0.2, 0.8]}}
        for step in (10, 20, 30)
    ]
    (running / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    under_way = fusionkit("analyze", "gates", tmp_path / "mine", "-o", out)
    assert under_way.code == 0, under_way.err
    assert "warning: fusion.x.gate: the gate is shut" in under_way.out
    assert len(json.loads((out / "gates.json").read_text())["over_training"]) == 3
    refused = fusionkit("analyze", "gates", tmp_path / "mine", photos, "-o", out)
    assert refused.code == 2
    assert "is not finished; its gates can be read from its log, without pictures" in refused.err


def test_correspond_of_two_streams(fusionkit: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("checkpoint:tiny:semantic", "checkpoint:tiny:spatial", photos, "-o", out, "--layers-b", "1-2", "--json")
    told = fusionkit("analyze", "correspond", *words)
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert {tuple(pair["layers"]) for pair in report["pairs"]} >= {(2, 1), (2, 2)}
    assert 0 < report["chance"]["right"] < 1
    assert all(0 <= pair["same picture"]["right"]["mean"] <= 1 for pair in report["pairs"])
    assert (out / "sheets" / "correspond-0.png.png").is_file()
    itself = fusionkit("analyze", "correspond", "small_vit", "small_vit,depth=2", photos, "-o", out / "same", "--json")
    best = json.loads(itself.out)["best"]
    assert best["right"]["mean"] > 0.9, "an encoder agrees with itself"


STOPPED = {
    "probe": ("probe", "small_vit", DATA, "--samples", "16", "--batch", "2"),
    "redundancy": ("redundancy", "small_vit", "photos", "--batch", "1"),
    "correspond": ("correspond", "small_vit", "small_conv", "photos", "--batch", "1"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_ctrl_c_stopped_goes_on_and_ends_as_if_it_had_not(
    fusionkit: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from fusionkit.analysis.capture import watch

    monkeypatch.chdir(tmp_path)
    calls: list[int] = []
    stop_at = 4

    def stopping(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return watch(*given, **named)

    straight = fusionkit("analyze", *STOPPED[name], "-o", "straight", "--json")
    assert straight.code == 0, straight.err
    monkeypatch.setattr(f"fusionkit.analysis.{name}.watch", stopping)
    stopped = fusionkit("analyze", *STOPPED[name], "-o", "out")
    assert stopped.code == 130
    assert "stopped; the same command goes on from here" in stopped.err
    assert list((tmp_path / "out" / "partial").glob("*.safetensors"))
    done = fusionkit("analyze", *STOPPED[name], "-o", "out", "--json")
    assert done.code == 0, done.err
    assert _close(json.loads(done.out), json.loads(straight.out))
    before = len(calls)
    again = fusionkit("analyze", *STOPPED[name], "-o", "out", "--json")
    assert again.code == 0
    assert len(calls) == before, "nothing is measured twice"
    (tmp_path / "photos" / "0.png").unlink()
    other = fusionkit("analyze", *STOPPED[name], "-o", "out", *(("--layers", "1") if name == "probe" else ()))
    assert other.code == 2
    assert "--fresh" in other.err


def _close(left: Any, right: Any) -> bool:
    """Sums in another order round otherwise; everything else is the same."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_close(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(_close(x, y) for x, y in zip(left, right, strict=True))
    return left == pytest.approx(right, abs=1e-4) if isinstance(left, float) else left == right


def test_the_reports_in_a_browser(
    fusionkit: Callable[..., Any], in_browser: Callable[[Path, str], Any], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert fusionkit("analyze", "probe", "small_vit", DATA, "-o", out, "--samples", "12").code == 0
    assert fusionkit("analyze", "redundancy", "small_vit", photos, "-o", out).code == 0
    assert fusionkit("analyze", "gates", "checkpoint:tiny", photos, "-o", out).code == 0
    assert fusionkit("analyze", "correspond", "small_vit", "small_conv", photos, "-o", out).code == 0
    for name, pictures in (("probe", 1), ("redundancy", 2), ("gates", 1), ("correspond", 6)):
        seen = in_browser(
            out / f"{name}.html",
            """
            document.querySelector("th button").click();
            return {
              pictures: [...document.images].map(image => image.naturalWidth),
              sorted: document.querySelector("th").getAttribute("aria-sort"),
              requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
            };
            """,
        )
        assert len(seen["pictures"]) == pictures, name
        assert min(seen["pictures"]) > 400, name
        assert seen["sorted"] == "ascending", name
        assert seen["requests"] == [], name
