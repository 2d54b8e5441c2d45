"""The verbs `plan`, `graph` and `inspect`: what they print, write, and say when they cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import exit_code
from PIL import Image
from plan_recipe import written

from fusionkit.cli.inspect import layout_lines
from fusionkit.recipe import load_recipe
from fusionkit.recipe.plan import plan

PLUGIN = """\
from typing import Literal
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig

class HalveConfig(StepConfig):
    type: Literal["my.halve"] = "my.halve"

def plan(config, inputs, target):
    tokens = inputs["input"]
    return BlockPlan.of(tokens.with_grid(tokens.grid.pooled((2, 1))), reads=[tokens])

HALVE = BlockSpec(api=1, family="poolers", config=HalveConfig, plan=plan, factory="halve_pool:Nothing", summary="x")
"""


def values(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((120, 80)).convert("RGB").save(path)
    return path


# ------------------------------------------------------------------------------------------------------- plan
def test_plan_prints_every_node_and_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    planned = plan(load_recipe(path))
    assert exit_code("plan", path, "--image", "120x80") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pair"
    for node in planned.nodes:
        line = next(line for line in lines if line.startswith(node.address + " "))
        assert node.type in line
        assert f"{node.params:,}" in line
    assert any(line.startswith("parameters") and f"{planned.parameters:,}" in line for line in lines)
    assert any(line.split()[:2] == ["largest", str(planned.largest_layout.crops)] for line in lines)
    assert any(line.startswith("120x80") for line in lines)
    assert "visual tokens 4x4 tokens of width 32 per crop, from `project`" in lines
    assert not [line for line in lines if "\x1b" in line]


def test_plan_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    planned = plan(load_recipe(path))
    assert exit_code("plan", path, "--json", "--image", "120x80", "--image", "10x10") == 0
    data = values(capsys)
    assert {**data, "pictures": None} == {**planned.to_dict(), "pictures": None}
    assert [each["size"] for each in data["pictures"]] == [[120, 80], [10, 10]]  # type: ignore[attr-defined]


def test_plan_with_a_changed_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plan", written(tmp_path), "--set", "cropper.max_crops=1", "--json") == 0
    assert values(capsys)["largest_picture"]["crops"] == 2  # type: ignore[index]


def test_plan_with_a_plugin_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "halve_pool.py"
    plugin.write_text(PLUGIN)
    path = written(tmp_path, ("pool: {type: average_pool, window: [2, 2]}", "pool: {type: my.halve}"))
    assert exit_code("plan", path, "--json") == 2
    assert "my.halve" in capsys.readouterr().err
    assert exit_code("plan", path, "--plugin", plugin, "--json") == 0
    nodes = {node["address"]: node for node in values(capsys)["nodes"]}  # type: ignore[attr-defined]
    assert nodes["fusion.pool"]["outputs"]["main"]["grid"] == [4, 8]
    assert nodes["fusion.pool"]["distribution"]["name"] == str(plugin)


def test_plan_meta_builds_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    count = plan(load_recipe(path)).parameters
    assert exit_code("plan", path, "--meta") == 0
    assert f"built on meta: {count:,} parameters, as planned at each of 10 addresses" in capsys.readouterr().out
    assert exit_code("plan", path, "--meta", "--json") == 0
    assert values(capsys)["meta"] == {"equal": True, "planned": count, "built": count, "differences": []}


def test_plan_meta_says_where_it_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionkit.cli import plan_meta

    monkeypatch.setattr(plan_meta, "_count", lambda module: 1)
    assert exit_code("plan", written(tmp_path), "--meta") == 2
    out = capsys.readouterr().out
    assert any(line.startswith("fusion.align ") and line.endswith(" 1") for line in out.splitlines())


def test_plan_reports_every_problem_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(
        tmp_path, ("heads: 2}\n  pool", "heads: 5}\n  pool"), ("sequence_length: 512", "sequence_length: 4096")
    )
    assert exit_code("plan", path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error"]
    assert "pair.yaml:3:1: sequence_length" in lines[0]
    assert "pair.yaml:18:73: fusion.align.heads" in lines[1]


@pytest.mark.parametrize("size", ["", "640", "640x", "0x10", "1x1x1", "10x9999999", "-3x4"])
def test_an_image_size_that_is_none(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plan", written(tmp_path), f"--image={size}") == 2
    assert f"error: --image {size}: expected WIDTHxHEIGHT in pixels" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ graph
def test_graph_writes_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.svg"
    assert exit_code("graph", written(tmp_path), "-o", out) == 0
    assert ElementTree.parse(out).getroot().tag.endswith("svg")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"wrote {out}\n")


def test_graph_prints_mermaid_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path), tmp_path / "out.mmd"
    assert exit_code("graph", path) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("flowchart TD\n")
    assert exit_code("graph", path, "-o", out) == 0
    assert out.read_text() == printed


def test_graph_writes_png_of_the_same_size(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png, svg = tmp_path / "out.png", tmp_path / "out.svg"
    path = written(tmp_path)
    assert exit_code("graph", path, "-o", png) == exit_code("graph", path, "-o", svg) == 0
    root = ElementTree.parse(svg).getroot()
    with Image.open(png) as image:
        assert image.width == pytest.approx(2 * float(root.attrib["width"]), abs=3)
        assert image.height == pytest.approx(2 * float(root.attrib["height"]), abs=3)
        assert len(image.convert("RGB").getcolors(image.width * image.height) or ()) > 20


def test_graph_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionkit.cli import graph_png

    monkeypatch.setattr(graph_png, "find_spec", lambda name: None if name == "matplotlib" else util.find_spec(name))
    out = tmp_path / "out.png"
    assert exit_code("graph", written(tmp_path), "-o", out) == 2
    assert "PNG needs matplotlib, which is not installed (`pip install 'fusionkit[plots]'`" in capsys.readouterr().err
    assert not out.exists()


def test_graph_knows_three_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("graph", written(tmp_path), "-o", "out.pdf") == 2
    assert "-o out.pdf: expected a name that ends in .svg, .png, .mmd" in capsys.readouterr().err


def test_graph_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("graph", written(tmp_path), "--json") == 0
    data = values(capsys)
    assert len(data["boxes"]) == 13  # type: ignore[arg-type]
    assert {"source": "fusion.align", "target": "fusion.pool", "label": ""} in data["edges"]  # type: ignore[operator]


def test_graph_into_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("graph", written(tmp_path), "-o", tmp_path / "no" / "out.svg") == 2
    assert "No such file or directory" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- inspect
def test_inspect_shows_crops_layout_and_prompt(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert exit_code("inspect", path, photo, "-q", "find the cat") == 0
    out = capsys.readouterr().out
    assert out.startswith("photo.png, 120x80 px, through pair\n")
    assert "semantic  5x3x48x48  8x8           8x8 tokens of width 24" in out
    assert "token layout" in out
    assert "find the cat" in out


def test_inspect_counts_what_the_plan_counts(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fusionkit.geometry import Size

    path = written(tmp_path)
    layout = plan(load_recipe(path)).layout(Size(120, 80))
    assert exit_code("inspect", path, photo, "--json") == 0
    data = values(capsys)
    assert data["visual_tokens"] == len(layout.patches) == sum(each["kept_tokens"] for each in data["crops"])  # type: ignore[attr-defined]
    assert data["picture_tokens"] == layout.tokens
    assert data["symbols"] == list(layout.symbols)
    assert data["pixels"] == {"semantic": [layout.crops, 3, 48, 48], "spatial": [layout.crops, 3, 32, 32]}
    assert isinstance(data["prompt_tokens"], int)
    assert data["prompt_tokens"] > layout.tokens
    assert data["crops"][0]["region"] == [0, 0, 120, 80]  # type: ignore[index]


def test_inspect_draws_the_crops(tmp_path: Path, photo: Path) -> None:
    out = tmp_path / "crops.png"
    assert exit_code("inspect", written(tmp_path), photo, "-o", out) == 0
    with Image.open(out) as image:
        # 120x80 is enlarged to a shorter side of 640, with a border of 16 on each side.
        assert image.size == (992, 672)
        colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height) or ()}
    assert (0x25, 0x63, 0xEB) in colours
    assert (0xDC, 0x26, 0x26) in colours


def test_inspect_draws_crops_that_reach_outside_the_picture(tmp_path: Path, photo: Path) -> None:
    out = tmp_path / "crops.png"
    path = written(tmp_path, ("margin_patches: [2, 2]", "margin_patches: [2, 2], fit: letterbox"))
    assert exit_code("inspect", path, photo, "-o", out) == 0
    with Image.open(out) as image:
        assert image.height > 672


def test_inspect_without_the_tokenizer_still_shows_the_crops(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}
        )
    )
    path = written(tmp_path, ("tokenizer: builtin:tiny", f"tokenizer: {folder}"))
    assert exit_code("inspect", path, photo) == 0
    captured = capsys.readouterr()
    assert "no prompt: language_model.tokenizer" in captured.err
    assert "token layout" in captured.out
    assert "prompt (" not in captured.out


@pytest.mark.parametrize(
    ("name", "text"), [("missing.png", "no such picture"), ("broken.png", "not a picture that Pillow can read")]
)
def test_inspect_needs_a_picture(name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing like a picture")
    assert exit_code("inspect", written(tmp_path), tmp_path / name) == 2
    assert text in capsys.readouterr().err


def test_layout_lines() -> None:
    image = "<image>"
    symbols = ["<s>", image, image, "<r>", image, image, "<r>", "</s>", image]
    assert layout_lines(symbols) == ["<s>", "2 times: <image> x2 <r>", "</s>", "<image> x1"]


# ------------------------------------------------------------------------------------------------------- walls
@pytest.mark.parametrize("verb", ["plan", "graph"])
def test_planning_verbs_import_no_torch(verb: str, tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "def check():\n"
        "    heavy = {'torch', 'numpy', 'PIL', 'timm', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "    sys.stderr.write(f'heavy={sorted(heavy)}')\n"
        "atexit.register(check)\n"
        "from fusionkit.cli.main import run\n"
        f"run([{verb!r}, {str(written(tmp_path))!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "heavy=[]"
