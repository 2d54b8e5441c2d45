"""The table of architectures: it is what the installed libraries say, and it is read without them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fusionkit import architectures
from fusionkit.blocks.encoders import counts, specs, towers, transformers_specs
from fusionkit.errors import BuildError, ShapeError
from fusionkit.testing import architectures as generator
from fusionkit.testing import decoders, vision_towers

REGENERATED = (
    "convnext_tiny.in12k_ft_in1k",
    "test_vit3.r160_in1k",
    "vit_large_patch14_clip_336.openai",
    "vit_large_patch16_dinov3.lvd1689m",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_so400m_patch16_siglip_384.v2_webli",
)
"""Measured anew in every run; `python -m fusionkit.testing.architectures --check` does all."""


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, dict[str, object]]]:
    return json.loads(architectures.PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REGENERATED)
def test_entries_are_what_timm_says(name: str, table: dict[str, dict[str, dict[str, object]]]) -> None:
    assert generator.timm_section([name]) == {name: table["timm"][name]}


def test_the_table_has_what_the_generator_lists(table: dict[str, dict[str, dict[str, object]]]) -> None:
    assert list(table["timm"]) == sorted(generator.TIMM_MODELS)
    assert table["transformers"] == generator.transformers_section()
    assert table["transformers_vision"] == generator.towers_section(table["timm"])
    assert architectures.PATH.read_text(encoding="utf-8") == generator.render(table)


@pytest.mark.parametrize("name", architectures.names("transformers_vision"))
def test_every_vision_tower_plans(name: str) -> None:
    listed = vision_towers.TOWERS[name]
    size = None if "so400m-patch14-384" not in name else 378
    info = transformers_specs.describe_transformers(transformers_specs.TransformersConfig(model=name, image_size=size))
    twin = specs.describe_timm(specs.TimmConfig(model=listed.twin, image_size=info.input_size))
    difference = vision_towers.expected_difference(towers.read_tower(listed.facts["config"]))
    assert info.params((info.depth,)) == twin.params((twin.depth,)) + difference
    assert info.flops((info.depth,)) == twin.flops((twin.depth,))
    assert info.name == name


def test_a_tower_that_differs_from_its_twin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "facebook/dinov2-small"
    known = vision_towers.TOWERS[name]
    wrong = {**known.facts, "config": {**known.facts["config"], "num_attention_heads": 12}}
    monkeypatch.setitem(vision_towers.TOWERS, name, vision_towers.KnownTower(wrong, known.twin))
    timm = json.loads(architectures.PATH.read_text(encoding="utf-8"))["timm"]
    with pytest.raises(BuildError, match=r"facebook/dinov2-small: heads 12, its timm twin vit_small_.* has 6"):
        generator.towers_section(timm)


@pytest.mark.parametrize("name", architectures.names("timm"))
def test_every_entry_plans(name: str, table: dict[str, dict[str, dict[str, object]]]) -> None:
    architecture = counts.Architecture.model_validate_json(json.dumps(table["timm"][name]))
    # The activation of CLIP is in the name, not in the weights.
    assert architecture.hub_id == f"timm/{name.replace('_quickgelu', '')}"
    for level in architecture.levels:
        # A few names promise an input that is no multiple of their patch (384 at 14); see the test below.
        size = architecture.input_size[0] // level.stride[0] * level.stride[0]
        info = specs.describe_timm(specs.TimmConfig(model=name, stride=level.stride[0], image_size=size))
        assert info.licence
        assert 0 < info.params((0,)) < info.params((info.depth,))
        assert 0 < info.flops((0,)) < info.flops((info.depth,))


def test_the_flagships_encoder_has_the_published_size() -> None:
    info = specs.describe_timm(specs.TimmConfig(model="vit_so400m_patch16_siglip_384.v2_webli"))
    assert (info.params((27,)), str(info.grid), info.licence) == (413_016_048, "24x24", "apache-2.0")


def test_an_input_that_is_no_multiple_of_the_patch_is_not_cut_silently() -> None:
    with pytest.raises(ShapeError, match=r"384x384 is not a multiple of the patch of 14 px \(use 378x378\)"):
        specs.describe_timm(specs.TimmConfig(model="vit_so400m_patch14_siglip_384.webli"))


def test_licences_that_bind_are_told() -> None:
    assert specs.describe_timm(specs.TimmConfig(model="vit_base_patch16_dinov3")).licence == "dinov3-license"


def test_a_decoder_whose_count_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = decoders.DECODERS["Qwen/Qwen2-7B"]
    monkeypatch.setitem(decoders.DECODERS, "Qwen/Qwen2-7B", {**entry, "parameters": 1})
    with pytest.raises(BuildError, match="Qwen/Qwen2-7B: its config has 7615616512 parameters, its card says 1"):
        generator.transformers_section()


def test_the_generator_prints_the_facts_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main(["test_vit.r160_in1k"]) == 0
    assert json.loads(capsys.readouterr().out) == architectures.facts("timm", "test_vit.r160_in1k")
    assert generator.main(["no_such_model"]) == 2
    assert "error: timm" in capsys.readouterr().err


def test_the_library_is_asked_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert architectures.facts("timm", "test_efficientnet.r160_in1k") is None
    monkeypatch.setattr(architectures, "LIBRARIES", {"timm": f"{__name__}:_answer"})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[_answer.__module__])
    with architectures.asking_libraries():
        assert architectures.facts("timm", "made_up_for_this_test") == {"asked": "made_up_for_this_test"}
    assert architectures.facts("timm", "made_up_for_this_test") is None


def _answer(name: str) -> dict[str, str]:
    return {"asked": name}


def test_near_names_start_with_other_tags_of_the_model() -> None:
    assert architectures.near("timm", "convnext_tiny.in22k")[:2] == [
        "convnext_tiny.dinov3_lvd1689m",
        "convnext_tiny.in12k_ft_in1k",
    ]
    assert "Qwen/Qwen2-7B" in architectures.near("transformers", "Qwen/Qwen2-8B")
    assert architectures.near("transformers", "zzz") == []


def test_facts_are_read_without_any_library() -> None:
    script = (
        "import sys\n"
        "from fusionkit.blocks.encoders.specs import TimmConfig, describe_timm\n"
        "from fusionkit.blocks.language_models.specs import CausalConfig, describe_causal\n"
        "describe_timm(TimmConfig(model='vit_small_patch14_dinov2.lvd142m')).params((12,))\n"
        "describe_causal(CausalConfig(model='Qwen/Qwen2-7B')).count_flops(10)\n"
        "heavy = {'torch', 'timm', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
