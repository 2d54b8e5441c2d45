"""Stages 1 and 2: loading specs and factories one at a time, and what goes wrong then."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fusionkit import registry
from fusionkit.errors import (
    AmbiguousBlockError,
    PluginApiError,
    PluginLoadError,
    UnknownBlockError,
)
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig

SPEC = """
from typing import Literal
from fusionkit.plugin import BlockPlan, BlockSpec, StepConfig

class Config(StepConfig):
    type: Literal["{name}"] = "{name}"

def plan(config, inputs, target_width):
    return BlockPlan.of(inputs["input"])

SPEC = BlockSpec(api={api}, family="{family}", config=Config, plan=plan, factory="{factory}", summary="A test block.")
"""


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Specs are kept by distribution and version; every test here writes its own `acme 1.0`."""
    monkeypatch.setattr(registry, "_loaded", {})


def spec_text(name: str = "acme.x", family: str = "adapters", factory: str = "acme_block:make", api: int = 1) -> str:
    return SPEC.format(name=name, family=family, factory=factory, api=api)


def install(site, text: str, name: str = "acme.x", target: str = "acme_spec:SPEC", **more: str) -> None:
    site.install("acme", entry_points={"fusionkit.adapters": {name: target}}, modules={"acme_spec.py": text, **more})


# ---------------------------------------------------------------------------------------------- loading
def test_a_spec_is_loaded_once_and_its_factory_only_on_demand(site) -> None:
    install(site, spec_text(), **{"acme_block.py": "def make(config, site): return 'made'"})
    spec = registry.spec("adapters", "acme.x")
    assert spec.address == "adapters/acme.x"
    assert registry.spec("adapters", "acme.x") is spec
    assert registry.distribution("adapters", "acme.x") == ("acme", "1.0")
    assert "acme_block" not in sys.modules
    assert registry.factory(spec)(None, None) == "made"


def test_steps_are_found_by_name_alone(site) -> None:
    install(site, spec_text())
    assert registry.step_spec("acme.x") is registry.spec("adapters", "acme.x")
    assert registry.step_spec("orthogonal").family == "mixers"


def test_names_load_nothing_and_leave_out_what_cannot_be_used(site) -> None:
    site.install("acme", entry_points={"fusionkit.adapters": {"acme.x": "acme_missing:X", "linear": "acme_missing:Y"}})
    names = registry.names("adapters")
    assert "acme.x" in names
    assert names == sorted(set(names))
    assert registry.distribution("adapters", "linear")[0] == "fusionkit"


def test_what_is_removed_while_we_run_is_gone(site) -> None:
    info = site.install("acme", entry_points={"fusionkit.mixers": {"acme.mix": "m:X"}})
    assert "acme.mix" in registry.names("mixers")
    shutil.rmtree(info)
    assert "acme.mix" not in registry.names("mixers")


def test_an_upgrade_while_we_run_is_seen(site) -> None:
    info = site.install("acme", "1.0", entry_points={"fusionkit.mixers": {"acme.mix": "m:X"}})
    assert registry.distribution("mixers", "acme.mix") == ("acme", "1.0")
    shutil.rmtree(info)
    site.install("acme", "1.1", entry_points={"fusionkit.mixers": {"acme.mix": "m:X"}})
    assert registry.distribution("mixers", "acme.mix") == ("acme", "1.1")


def test_what_is_installed_while_we_run_is_found(site) -> None:
    with pytest.raises(UnknownBlockError):
        registry.spec("adapters", "acme.x")
    install(site, spec_text())
    assert registry.spec("adapters", "acme.x").name == "acme.x"


# -------------------------------------------------------------------------------------------- not found
@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        (
            "mixers",
            "orthogonl",
            "no mixer called 'orthogonl' is installed; did you mean 'orthogonal' or 'orthogonal_two_stage'? "
            "(`fusionkit list mixers` shows all)",
        ),
        (
            "mixers",
            "attention_pool",
            "no mixer called 'attention_pool' is installed; 'attention_pool' is a pooler "
            "(`fusionkit list mixers` shows all)",
        ),
        (
            "injectors",
            "zzz",
            "no injector called 'zzz' is installed; there are add, deepstack, gated_cross_attention, replace (`fusionkit list injectors` shows all)",
        ),
        (
            "injectors",
            "zzz.nothing_like_it",
            "no injector called 'zzz.nothing_like_it' is installed; there are add, deepstack, gated_cross_attention, replace "
            "(`fusionkit list injectors` shows all; `--plugin FILE` brings those of a local file)",
        ),
    ],
)
def test_an_unknown_name_gets_a_guess(family: str, name: str, message: str) -> None:
    with pytest.raises(UnknownBlockError) as raised:
        registry.spec(family, name)
    assert str(raised.value) == message


def test_an_unknown_step_or_family_is_named() -> None:
    with pytest.raises(UnknownBlockError, match="no step called 'cocat' is installed; did you mean 'concat'"):
        registry.step_spec("cocat")
    with pytest.raises(UnknownBlockError, match="unknown family 'mixer'; expected one of encoders, "):
        registry.spec("mixer", "orthogonal")


def test_a_typing_error_does_not_load_a_broken_plugin(site) -> None:
    install(site, "raise RuntimeError('imported')")
    with pytest.raises(UnknownBlockError, match=r"did you mean 'acme\.x'"):
        registry.spec("adapters", "acme.y")


def test_a_name_two_distributions_claim_is_ambiguous(site) -> None:
    for name in ("acme-one", "acme-two"):
        site.install(name, entry_points={"fusionkit.adapters": {"acme.x": "acme_spec:SPEC"}})
    with pytest.raises(AmbiguousBlockError) as raised:
        registry.spec("adapters", "acme.x")
    assert str(raised.value) == (
        "adapters/acme.x of acme-one 1.0: also claimed by adapters/acme.x of acme-two 1.0; "
        "uninstall one, or set FUSIONKIT_BLOCK=DISTRIBUTION to leave one out"
    )
    with pytest.raises(AmbiguousBlockError):
        registry.step_spec("acme.x")


def test_a_block_left_out_says_so(site, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, spec_text())
    monkeypatch.setenv("FUSIONKIT_BLOCK", "acme")
    with pytest.raises(UnknownBlockError) as raised:
        registry.spec("adapters", "acme.x")
    assert str(raised.value) == (
        "adapters/acme.x is installed but cannot be used (acme 1.0: blocked: left out by FUSIONKIT_BLOCK)"
    )


# ----------------------------------------------------------------------------------------------- broken
@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("import acme_nowhere", "acme_spec:SPEC", "ModuleNotFoundError: No module named 'acme_nowhere'"),
        ("raise SystemExit('bye')", "acme_spec:SPEC", "SystemExit: bye"),
        ("SPEC = 1", "acme_spec:OTHER", "AttributeError: module 'acme_spec' has no attribute 'OTHER'"),
        ("SPEC = 1", "acme_spec", "ValueError: 'acme_spec' is not package.module:Name"),
        ("def f(:", "acme_spec:SPEC", "SyntaxError: "),
    ],
)
def test_whatever_a_plugin_raises_names_the_plugin(site, text: str, target: str, message: str) -> None:
    install(site, text, target=target)
    with pytest.raises(PluginLoadError) as raised:
        registry.spec("adapters", "acme.x")
    assert str(raised.value).startswith(f"adapters/acme.x of acme 1.0 does not load: entry point {target}: {message}")
    assert registry.spec("mixers", "orthogonal").name == "orthogonal"


def test_the_frame_that_failed_is_named(site) -> None:
    install(site, "\n\n1 / 0\n")
    with pytest.raises(
        PluginLoadError, match=r"ZeroDivisionError: division by zero \(at .*acme_spec\.py:3 in <module>\)"
    ):
        registry.spec("adapters", "acme.x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPEC = 1", "acme_spec:SPEC is a int, expected a fusionkit.plugin.BlockSpec"),
        (spec_text(name="acme.y"), "acme_spec:SPEC is the spec of adapters/acme.y; name, `type` and family must agree"),
        (
            spec_text(family="poolers"),
            "acme_spec:SPEC is the spec of poolers/acme.x; name, `type` and family must agree",
        ),
    ],
)
def test_a_wrong_spec_is_refused(site, text: str, message: str) -> None:
    install(site, text)
    with pytest.raises(PluginLoadError) as raised:
        registry.spec("adapters", "acme.x")
    assert str(raised.value) == f"adapters/acme.x of acme 1.0: {message}"


def test_another_plugin_api_says_what_to_upgrade(site) -> None:
    install(site, spec_text(api=2))
    with pytest.raises(PluginApiError) as raised:
        registry.spec("adapters", "acme.x")
    assert str(raised.value) == (
        "adapters/acme.x of acme 1.0: block made for plugin API 2; this fusionkit accepts 1 (upgrade fusionkit)"
    )


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "acme_block:make",
            "does not load: factory acme_block:make: ModuleNotFoundError: No module named 'acme_block'",
        ),
        ("acme_spec:nothing", "does not load: factory acme_spec:nothing: AttributeError: "),
        ("acme_spec:Config.model_config", "factory acme_spec:Config.model_config is a dict, not callable"),
    ],
)
def test_a_broken_factory_is_named(site, factory: str, message: str) -> None:
    install(site, spec_text(factory=factory))
    with pytest.raises(PluginLoadError) as raised:
        registry.factory(registry.spec("adapters", "acme.x"))
    assert str(raised.value).startswith("adapters/acme.x of acme 1.0")
    assert message in str(raised.value)


# --------------------------------------------------------------------------------------------- override
def _spec(type_name: str, factory: str) -> BlockSpec:
    config = type("Config", (StepConfig,), {"__annotations__": {"type": str}, "type": type_name})
    return BlockSpec(
        api=1,
        family="mixers",
        config=config,
        plan=lambda config, inputs, width: BlockPlan.of(inputs["input"].tokens),
        factory=factory,
        summary="",
    )


def test_overrides_nest_and_end() -> None:
    builtin = registry.spec("mixers", "orthogonal")
    first, second = _spec("orthogonal", "m:first"), _spec("orthogonal", "m:second")
    with registry.override(first) as given:
        assert given is first
        assert registry.spec("mixers", "orthogonal") is first
        with registry.override(second):
            assert registry.step_spec("orthogonal") is second
            assert registry.distribution("mixers", "orthogonal") == ("override", "m:second")
        assert registry.spec("mixers", "orthogonal") is first
    assert registry.spec("mixers", "orthogonal") is builtin


def test_an_override_ends_when_its_block_raises() -> None:
    def build() -> None:
        assert "my.new" in registry.names("mixers")
        raise KeyError

    with pytest.raises(KeyError), registry.override(_spec("my.new", "m:x")):
        build()
    assert "my.new" not in registry.names("mixers")


# ----------------------------------------------------------------------------------------- plugin files
@pytest.fixture
def file(tmp_path: Path, site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a plugin file; what it registers is forgotten after the test."""
    monkeypatch.setattr(registry, "_files", {})
    return tmp_path / "my_block.py"


def test_a_plugin_file_brings_its_own_blocks_and_is_importable(file: Path) -> None:
    imported = "from fusionkit.blocks.mixers.specs import ORTHOGONAL\n"
    file.write_text(
        imported + spec_text("my.block", factory="my_block:make") + "def make(config, site): return 'made'\n"
    )
    (spec,) = registry.load_plugin_file(file)
    assert spec.address == "adapters/my.block"
    assert registry.step_spec("my.block") is spec
    assert "my.block" in registry.names("adapters")
    assert registry.factory(spec)(None, None) == "made"
    where, version = registry.distribution("adapters", "my.block")
    assert where == str(file)
    assert version.startswith("sha256:")
    assert registry.load_plugin_file(str(file)) == (spec,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no BlockSpec found; assign one at the top level, with a config class of this file"),
        (
            spec_text("orthogonal"),
            "'orthogonal' is not vendor.name; names without a dot belong to fusionkit, "
            "call it for example my.orthogonal",
        ),
        (
            "1 / 0",
            "plugin file {file} does not load: running it: ZeroDivisionError: division by zero (at {file}:1 in <module>)",
        ),
    ],
)
def test_a_plugin_file_that_cannot_be_used_says_why(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(PluginLoadError) as raised:
        registry.load_plugin_file(file)
    assert message.format(file=file) in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.py", "no such file; --plugin takes a Python file"),
        ("my-block.py", "a plugin file is called like a Python module, for example my_block.py"),
        ("block.txt", "a plugin file is called like a Python module, for example my_block.py"),
        ("json.py", "a module called 'json' exists already; rename the file"),
        ("timeit.py", "a module called 'timeit' exists already; rename the file"),
    ],
)
def test_a_file_with_an_unusable_name_is_refused(file: Path, name: str, message: str) -> None:
    path = file.with_name(name)
    if name != "absent.py":
        path.write_text(spec_text("my.block"))
    with pytest.raises(PluginLoadError) as raised:
        registry.load_plugin_file(path)
    assert str(raised.value) == f"{path}: {message}"


def test_a_plugin_file_does_not_take_an_installed_name(file: Path, site) -> None:
    install(site, spec_text())
    file.write_text(spec_text())
    with pytest.raises(AmbiguousBlockError) as raised:
        registry.load_plugin_file(file)
    assert str(raised.value) == f"{file}: adapters/acme.x is also claimed by acme 1.0; rename one"


def test_two_plugin_files_do_not_share_a_name(file: Path) -> None:
    other = file.with_name("my_other_block.py")
    for path in (file, other):
        path.write_text(spec_text("my.block"))
    registry.load_plugin_file(file)
    with pytest.raises(AmbiguousBlockError, match=r"my_block\.py; rename one"):
        registry.load_plugin_file(other)
