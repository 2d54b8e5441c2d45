"""`fusionkit analyze` as a person uses it: an encoder written an hour ago, a folder of pictures, a report, a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

PLUGIN = """
from typing import Literal
import torch
from torch import nn
from fusionkit.plugin import BlockConfig, BlockSpec, EncoderInfo, Grid

class HourOldConfig(BlockConfig):
    type: Literal["acme.hour_old"] = "acme.hour_old"
    depth: int = 4

def describe(config):
    return EncoderInfo(depth=config.depth, width=8, stride=(8, 8), input_size=(32, 32), prefix_tokens=0,
        mean=(0.5,) * 3, std=(0.5,) * 3, licence="none", count_params=lambda deepest: 0,
        count_flops=lambda deepest, grid: 0, name="acme.hour_old")

class HourOld(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, stride=8)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(max(site.layers)))

    def forward_layers(self, x, layers):
        found = {}
        self.tap(x, layers, found.__setitem__)
        return [found[layer] for layer in layers]

    def tap(self, x, layers, consume):
        x = self.stem(x).flatten(2).transpose(1, 2)
        if 0 in layers:
            consume(0, x)
        for layer, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x)
            if layer in layers:
                consume(layer, x)

HOUR_OLD = BlockSpec(api=1, family="encoders", config=HourOldConfig, describe=describe,
    factory="hour_old:HourOld", summary="Written an hour ago.")
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((40 + 8 * number, 36), 60).convert("RGB").save(folder / f"{number}.png")
    return folder


@pytest.fixture
def hour_old(tmp_path: Path) -> Path:
    path = tmp_path / "hour_old.py"
    path.write_text(PLUGIN)
    return path


def test_from_an_hour_old_encoder_to_a_recipe_that_uses_it(
    fusionkit: Callable[..., Any], photos: Path, hour_old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("analyze", "entropy", "acme.hour_old", "small_vit", "photos", "-o", "report", "--plugin", "hour_old.py")
    told = fusionkit(*words)
    assert told.code == 0, told.err
    assert re.search(r"acme\.hour_old: read layers [\d, -]+: .*patch-to-patch entropy", told.out)
    assert "entropy acme.hour_old: 3/3 pictures" in told.err
    assert "wrote report/entropy.html" in told.err
    report = json.loads((tmp_path / "report" / "acme.hour_old.entropy.json").read_text())
    assert [entry["layer"] for entry in report["layers"]] == [1, 2, 3, 4]
    assert report["images"] == 3
    assert all(entry["low"] <= entry["entropy"] <= entry["high"] for entry in report["layers"])
    assert {file.name for file in (tmp_path / "report").iterdir()} == {
        "acme.hour_old.entropy.json",
        "small_vit.entropy.json",
        "entropy.json",
        "entropy.html",
        "entropy.png",
        "entropy.svg",
        "partial",
    }
    both = fusionkit(*words, "--paste")
    assert set(yaml.safe_load(both.out)["streams"]) == {"hour_old", "small_vit"}
    alone = fusionkit(*words[:3], *words[4:], "--paste")
    (tmp_path / "mine.yaml").write_text(f"schema: 1\nname: mine\n{alone.out}")
    planned = fusionkit("plan", "mine.yaml", "--plugin", "hour_old.py", "--json")
    assert planned.code == 0, planned.err
    encoder = next(node for node in json.loads(planned.out)["nodes"] if node["address"] == "streams.hour_old.encoder")
    chosen = json.loads((tmp_path / "report" / "acme.hour_old.entropy.json").read_text())["suggestion"]["layers"]
    assert encoder["layers"] == chosen


def test_encoders_without_attention_say_so_and_are_measured_by_energy(
    fusionkit: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    conv = "timm,model=test_convnext.r160_in1k,image_size=64,stride=16,weights=random"
    told = fusionkit("analyze", "entropy", conv, photos, "-o", tmp_path / "out", "--json")
    assert told.code == 0, told.err
    (report,) = json.loads(told.out)["encoders"].values()
    assert report["measure"] == "feature_energy"
    assert "computes no attention" in next(iter(report["without_attention"].values()))
    refused = fusionkit("analyze", "entropy", conv, photos, "-o", tmp_path / "out", "--measure", "patch_to_patch")
    assert refused.code == 2
    assert "does not have it (the block computes no attention that can be seen); it has feature_energy" in refused.err


def test_ctrl_c_loses_nothing(
    fusionkit: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionkit.analysis.measures import measure_entropy

    calls: list[int] = []

    def stop_at_the_second(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure_entropy(*given)

    monkeypatch.setattr("fusionkit.analysis.entropy.measure_entropy", stop_at_the_second)
    words = ("analyze", "entropy", "small_vit", photos, "-o", tmp_path / "out", "--batch", "1")
    stopped = fusionkit(*words)
    assert stopped.code == 130
    assert "stopped; the same command goes on from here" in stopped.err
    assert "Traceback" not in stopped.err
    done = fusionkit(*words)
    assert done.code == 0
    assert len(calls) == 4, "the first picture is not measured again"
    other = fusionkit(*words, "--layers", "1")
    assert other.code == 2
    assert "holds results of other settings (layers differ)" in other.err
    assert fusionkit(*words, "--layers", "1", "--fresh").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("entropy", "small_vit"), "name at least one encoder, then the pictures"),
        (("entropy", "small_vit", "nowhere"), "nowhere: no such file or folder"),
        (("entropy", "small_vti", "photos"), "did you mean 'small_vit'"),
        (("entropy", "small_vit", "photos", "--layers", "9"), "has layers 0..2, not 9"),
        (("entropy", "small_vit", "photos", "--knee", "--top-k", "1"), "give one of --threshold, --top-k and --knee"),
        (("entropy", "small_vit", "photos", "--direction", "up"), "--direction up: expected high, low or LABEL=high"),
        (("rollout", "small_vit", "photos", "--query", "class"), "small_vit has no class token"),
        (("rollout", "small_vit", "photos", "--layers", "0-2"), "layer 0 is what goes into block 1"),
        (("gradcam", "checkpoint:tiny", "photos", "-q", " "), "the question is empty"),
        (("gradcam", "checkpoint:nobody", "photos", "-q", "x"), "no checkpoint 'checkpoint:nobody' is shipped"),
        (("probe", "small_vit"), "name at least one encoder, then the pictures"),
        (("probe", "small_vit", "synthetic_scens"), "did you mean 'synthetic_scenes'"),
        (("probe", "small_vit", "synthetic_scenes,size=big"), "size: must be an integer, got 'big'"),
        (("probe", "small_vit", "synthetic_scenes,samples=2"), "has 2 samples; a probe needs at least 4"),
        (
            ("probe", "small_vit", "synthetic_scenes,seed=5", "--entropy", "nowhere.json"),
            "--entropy nowhere.json: No such file",
        ),
        (
            ("probe", "small_vit", "synthetic_scenes,seed=5", "--entropy", "photos/0.png"),
            "not a report of `fusionkit analyze entropy`",
        ),
        (("redundancy", "small_vit", "nowhere"), "nowhere: no such file or folder"),
        (("redundancy", "small_vit", "photos", "--layers", "1-9"), "has layers 0..2, not 3"),
        (("gates", "checkpoint:nobody"), "no checkpoint 'checkpoint:nobody' is shipped"),
        (("gates", "nowhere"), "nowhere"),
        (("correspond", "checkpoint:tiny", "small_vit", "photos"), "expected two encoders to compare, got 3"),
        (("correspond", "small_vit", "small_vit", "photos"), "named twice"),
        (("correspond", "small_vit", "small_conv", "photos/0.png"), "expected at least 4 pictures"),
    ],
)
def test_wrong_commands_end_with_a_line_that_says_how_to_go_on(
    fusionkit: Callable[..., Any],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = fusionkit("analyze", *words, "-o", "out")
    assert told.code == 2, told.err
    assert message in told.err
    assert told.err.startswith("error: ")


def test_a_broken_picture_stops_with_its_name_and_keeps_what_was_done(
    fusionkit: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    broken = photos / "1.png"
    broken.write_bytes(broken.read_bytes()[:300])
    words = ("analyze", "pca", "small_vit", photos, "-o", tmp_path / "out", "--batch", "1")
    told = fusionkit(*words)
    assert told.code == 2
    assert "1.png: damaged or truncated" in told.err
    broken.unlink()
    assert fusionkit(*words).code == 0


def test_sheets_of_rollout_pca_and_gradcam(fusionkit: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fusionkit("analyze", "rollout", "small_vit,depth=4", "checkpoint:tiny", photos, "-o", out).code == 0
    assert fusionkit("analyze", "pca", "small_conv", photos, "-o", out, "--layers", "0-2", "--show", "1").code == 0
    asked = fusionkit("analyze", "gradcam", "checkpoint:tiny", photos, "-o", out, "-q", "count red", "--json")
    assert asked.code == 0, asked.err
    rollout = json.loads((out / "rollout.json").read_text())
    assert [row["layer"] for row in rollout["tables"][0]["rows"]] == [1, 2, 3, 4]
    assert len(rollout["tables"]) == 3
    for name in ("rollout", "pca", "gradcam"):
        sheets = json.loads((out / f"{name}.json").read_text())["sheets"]
        assert sheets == [f"sheets/{name}-{number}.png.png" for number in range(3)]
        for sheet in sheets:
            with Image.open(out / sheet) as picture:
                assert picture.width > 400
            assert (out / sheet).with_suffix(".svg").read_text().startswith("<svg")
    assert (out / "pca.html").read_text().count("<img") == 1
    assert (out / "rollout.html").read_text().count("<img") == 3


def test_the_report_in_a_browser(
    fusionkit: Callable[..., Any], in_browser: Callable[[Path, str], Any], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert fusionkit("analyze", "entropy", "small_vit,depth=12", photos, "-o", out).code == 0
    assert fusionkit("analyze", "pca", "small_vit", photos, "-o", out).code == 0
    seen = in_browser(
        out / "entropy.html",
        """
        const table = document.querySelector("table");
        const column = place => [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
        const click = place => table.querySelectorAll("th button")[place].click();
        const found = {pictures: [...document.images].map(image => image.naturalWidth)};
        found.requests = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"));
        click(2); found.up = column(2);
        click(2); found.down = column(2);
        click(0); found.layers = column(0); found.sorted = table.querySelector("th").getAttribute("aria-sort");
        return found;
        """,
    )
    assert seen["pictures"]
    assert min(seen["pictures"]) > 500
    assert seen["requests"] == []
    numbers = [float(value) for value in seen["up"]]
    assert numbers == sorted(numbers)
    assert seen["down"] == seen["up"][::-1] or sorted(map(float, seen["down"]), reverse=True) == [
        *map(float, seen["down"])
    ]
    assert seen["layers"] == [str(layer) for layer in range(1, 13)], "by number, not by letter"
    assert seen["sorted"] == "ascending"
    shown = in_browser(out / "pca.html", "return [...document.images].map(image => image.naturalWidth);")
    assert len(shown) == 3
    assert min(shown) > 400
