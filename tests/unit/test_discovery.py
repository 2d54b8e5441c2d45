"""Stage 0: names, versions and states come from metadata alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fusionkit import discovery, plugin
from fusionkit.discovery import BLOCK_VARIABLE, Entry, RecipeEntry
from fusionkit.errors import UsageError


def blocks(distribution: str) -> list[Entry]:
    return [entry for entry in discovery.scan().blocks if entry.distribution == distribution]


def recipes(distribution: str) -> list[RecipeEntry]:
    return [entry for entry in discovery.recipes() if entry.distribution == distribution]


def test_families_are_those_of_the_plugin_contract() -> None:
    assert tuple(plugin.FAMILIES) == discovery.FAMILY_NAMES
    assert plugin.STEP_FAMILIES == discovery.STEP_NAMES
    assert [family.singular.replace(" ", "_") for family in plugin.FAMILIES.values()] == [
        name[:-1] for name in discovery.FAMILY_NAMES
    ]


def test_our_own_blocks_are_found_sorted_by_family_and_name() -> None:
    own = blocks("fusionkit")
    assert {entry.state for entry in own} == {"ok"}
    assert "mixers/orthogonal" in {entry.address for entry in own}
    order = [(discovery.FAMILY_NAMES.index(entry.family), entry.name) for entry in own]
    assert order == sorted(order)


def test_a_vendor_block_is_found_without_importing_it(site) -> None:
    site.install(
        "Acme.SAM2",
        "2.1",
        entry_points={"fusionkit.encoders": {"acme.sam2": "acme_missing.spec:SAM2"}},
    )
    assert blocks("acme-sam2") == [Entry("encoders", "acme.sam2", "acme_missing.spec:SAM2", "acme-sam2", "2.1")]
    assert "acme_missing" not in sys.modules


def test_two_distributions_with_one_name_are_both_unusable_and_name_each_other(site) -> None:
    for name in ("acme-one", "acme-two"):
        site.install(name, entry_points={"fusionkit.mixers": {"acme.mix": "m:X", "acme." + name[5:]: "m:Y"}})
    (one,) = [entry for entry in blocks("acme-one") if entry.name == "acme.mix"]
    (two,) = [entry for entry in blocks("acme-two") if entry.name == "acme.mix"]
    assert one.state == two.state == "conflict"
    assert "mixers/acme.mix of acme-two 1.0" in one.reason
    assert "mixers/acme.mix of acme-one 1.0" in two.reason
    assert "FUSIONKIT_BLOCK" in one.reason
    assert [entry.state for entry in blocks("acme-one") if entry.name == "acme.one"] == ["ok"]


def test_leaving_one_out_settles_a_conflict(site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acme-one", "acme-two"):
        site.install(name, entry_points={"fusionkit.mixers": {"acme.mix": "m:X"}})
    monkeypatch.setenv(BLOCK_VARIABLE, "other, Acme_Two")
    assert [entry.state for entry in blocks("acme-one")] == ["ok"]
    assert [(entry.state, entry.reason) for entry in blocks("acme-two")] == [("blocked", "left out by FUSIONKIT_BLOCK")]


def test_step_families_share_one_space_of_names_and_others_do_not(site) -> None:
    site.install(
        "acme-a", entry_points={"fusionkit.mixers": {"acme.x": "m:X"}, "fusionkit.datasets": {"acme.y": "m:Y"}}
    )
    site.install(
        "acme-b", entry_points={"fusionkit.poolers": {"acme.x": "m:X"}, "fusionkit.metrics": {"acme.y": "m:Y"}}
    )
    assert {entry.name: entry.state for entry in blocks("acme-a")} == {"acme.x": "conflict", "acme.y": "ok"}
    assert {entry.name: entry.state for entry in blocks("acme-b")} == {"acme.x": "conflict", "acme.y": "ok"}


def test_names_without_a_dot_belong_to_fusionkit(site) -> None:
    site.install("acme", entry_points={"fusionkit.mixers": {"orthogonal": "m:X"}})
    (entry,) = blocks("acme")
    assert entry.state == "reserved-name"
    assert entry.reason == "names without a dot belong to fusionkit; call it vendor.orthogonal"
    assert [own.state for own in blocks("fusionkit") if own.address == "mixers/orthogonal"] == ["ok"]


@pytest.mark.parametrize("name", ["Acme.mix", "acme.Mix", "acme.mix.two", "acme-mix", "1acme.mix", "acme.", ".mix"])
def test_other_spellings_are_refused(site, name: str) -> None:
    site.install("acme", entry_points={"fusionkit.mixers": {name: "m:X"}})
    (entry,) = blocks("acme")
    assert entry.state == "invalid-name"
    assert "vendor.name" in entry.reason


def test_a_misspelt_group_is_shown_with_the_groups_there_are(site) -> None:
    site.install("acme", entry_points={"fusionkit.encoder": {"acme.x": "m:X"}})
    (entry,) = blocks("acme")
    assert entry.state == "unknown-family"
    assert "fusionkit.encoders" in entry.reason


def test_the_first_of_several_versions_on_the_path_counts(site, tmp_path: Path) -> None:
    site.install("acme", "1.0", entry_points={"fusionkit.mixers": {"acme.old": "m:X"}})
    later = tmp_path / "later"
    site.install("acme", "2.0", entry_points={"fusionkit.mixers": {"acme.new": "m:X"}}, folder=later)
    sys.path.append(str(later))
    scanned = discovery.scan()
    found = [(entry.name, entry.version, entry.state) for entry in scanned.blocks if entry.distribution == "acme"]
    assert found == [("acme.old", "1.0", "ok")]
    assert [(trouble.distribution, trouble.broken) for trouble in scanned.troubles] == [("acme", False)]
    assert scanned.troubles[0].message == "2.0 is on the path too, hidden by 1.0, which comes first"


def test_a_hidden_version_counts_for_nothing_even_if_only_it_has_blocks(site, tmp_path: Path) -> None:
    site.install("acme", "2.0", entry_points={})
    later = tmp_path / "later"
    site.install("acme", "1.0", entry_points={"fusionkit.mixers": {"acme.old": "m:X"}}, folder=later)
    sys.path.append(str(later))
    assert blocks("acme") == []


def test_the_same_version_found_twice_is_no_trouble(site, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "later"):
        site.install("acme", entry_points={"fusionkit.mixers": {"acme.x": "m:X"}}, folder=folder)
    sys.path.append(str(tmp_path / "later"))
    scanned = discovery.scan()
    assert [entry.state for entry in scanned.blocks if entry.distribution == "acme"] == ["ok"]
    assert scanned.troubles == ()


@pytest.mark.parametrize(
    ("metadata", "entry_points"),
    [
        ("Metadata-Version: 2.1\n", "[fusionkit.mixers]\nacme.x = m:X\n"),
        ("Metadata-Version: 2.1\nName: acme\nVersion: 1\n", "[fusionkit.mixers]\nacme.x\n"),
        ("", "[fusionkit.mixers]\nacme.x = m:X\n"),
    ],
)
def test_damaged_metadata_hides_nobody_else(site, metadata: str, entry_points: str) -> None:
    info = site.install("acme", "1", entry_points=entry_points)
    (info / "METADATA").write_text(metadata)
    site.install("good", entry_points={"fusionkit.mixers": {"good.x": "m:X"}})
    scanned = discovery.scan()
    assert [entry.state for entry in scanned.blocks if entry.distribution == "good"] == ["ok"]
    assert "mixers/orthogonal" in {entry.address for entry in scanned.blocks}
    (trouble,) = scanned.troubles
    assert trouble.broken
    assert "acme-1.dist-info" in trouble.distribution
    assert "metadata cannot be read" in trouble.message


# ---------------------------------------------------------------------------------------------- recipes
def test_recipes_are_found_without_importing_their_package(site) -> None:
    site.install(
        "acme-models",
        entry_points={"fusionkit.recipes": {"acme-models": "acme_models.recipes"}},
        modules={
            "acme_models/__init__.py": "raise RuntimeError('imported')",
            "acme_models/recipes/__init__.py": "raise RuntimeError('imported')",
            "acme_models/recipes/b.yaml": "",
            "acme_models/recipes/a.yaml": "",
            "acme_models/recipes/notes.txt": "",
        },
    )
    assert [(entry.address, entry.state) for entry in recipes("acme-models")] == [
        ("acme-models:a", "ok"),
        ("acme-models:b", "ok"),
    ]
    assert recipes("acme-models")[0].path == site.folder / "acme_models" / "recipes" / "a.yaml"


def test_the_name_builtin_belongs_to_fusionkit(site) -> None:
    site.install(
        "acme",
        entry_points={"fusionkit.recipes": {"builtin": "acme_recipes"}},
        modules={"acme_recipes/__init__.py": "", "acme_recipes/a.yaml": ""},
    )
    assert [(entry.state, entry.reason) for entry in recipes("acme")] == [
        ("reserved-name", "'builtin' belongs to fusionkit; call it acme")
    ]


def test_a_recipe_folder_that_is_gone_says_so(site) -> None:
    site.install("acme", entry_points={"fusionkit.recipes": {"acme": "acme_gone.recipes"}})
    (entry,) = recipes("acme")
    assert entry.state == "missing"
    assert (
        entry.reason == "package acme_gone.recipes of acme 1.0 is not on the path, or has no __init__.py; reinstall it"
    )


def test_a_package_below_folders_without_init_is_found(site) -> None:
    site.install("acme", modules={"acme_space/recipes/__init__.py": "", "acme_space/bare/a.yaml": ""})
    assert discovery.package_folder("acme_space.recipes") == site.folder / "acme_space" / "recipes"
    assert discovery.package_folder("acme_space.bare") is None
    assert discovery.package_folder("acme_space.absent") is None


# ------------------------------------------------------------------------------------------------ names
@pytest.mark.parametrize(
    ("text", "family"),
    [("mixers", "mixers"), ("mixer", "mixers"), ("language_model", "language_models"), ("metric", "metrics")],
)
def test_families_go_by_plural_and_singular(text: str, family: str) -> None:
    assert discovery.family_name(text) == family


def test_an_unknown_family_is_an_error_with_a_guess() -> None:
    with pytest.raises(UsageError, match=r"unknown family 'mixr'; did you mean 'mixer'\? expected one of encoders, "):
        discovery.family_name("mixr")
    with pytest.raises(UsageError, match="unknown family 'zzz'; expected one of encoders, "):
        discovery.family_name("zzz")
