"""Generate `fusionkit/architectures.json`, or print the facts of one timm model.

    python -m fusionkit.testing.architectures --write       write the table anew
    python -m fusionkit.testing.architectures --check       compare it with the installed libraries; exit code 1 if it differs
    python -m fusionkit.testing.architectures NAME          print the facts of a timm model, to paste under `info:`

timm entries are measured on the meta device; decoders of transformers come from `fusionkit.testing.decoders` and must
have the parameter count stated there, vision towers from `fusionkit.testing.vision_towers` and must agree with the timm
model of the same weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.architectures import PATH
from fusionkit.blocks.encoders.timm_facts import ask
from fusionkit.blocks.encoders.tower_facts import LIBRARY
from fusionkit.blocks.encoders.towers import read_statistics, read_tower
from fusionkit.blocks.language_models.counts import read_decoder
from fusionkit.errors import BuildError, FusionkitError
from fusionkit.testing.decoders import DECODERS
from fusionkit.testing.vision_towers import TOWERS, expected_difference

TIMM_MODELS = (
    "convnext_base.dinov3_lvd1689m",
    "convnext_base.fb_in22k_ft_in1k",
    "convnext_large.dinov3_lvd1689m",
    "convnext_small.dinov3_lvd1689m",
    "convnext_tiny.dinov3_lvd1689m",
    "convnext_tiny.in12k_ft_in1k",
    "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "eva02_large_patch14_clip_336.merged2b",
    "test_convnext.r160_in1k",
    "test_vit.r160_in1k",
    "test_vit2.r160_in1k",
    "test_vit3.r160_in1k",
    "vit_7b_patch16_dinov3.lvd1689m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_224.dino",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_base_patch16_siglip_224.v2_webli",
    "vit_base_patch16_siglip_256.v2_webli",
    "vit_base_patch16_siglip_384.v2_webli",
    "vit_base_patch16_siglip_512.v2_webli",
    "vit_base_patch32_clip_quickgelu_224.openai",
    "vit_base_patch8_224.dino",
    "vit_giant_patch14_dinov2.lvd142m",
    "vit_giant_patch14_reg4_dinov2.lvd142m",
    "vit_huge_plus_patch16_dinov3.lvd1689m",
    "vit_large_patch14_clip_224.openai",
    "vit_large_patch14_clip_336.openai",
    "vit_large_patch14_clip_quickgelu_224.openai",
    "vit_large_patch14_clip_quickgelu_336.openai",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_large_patch14_reg4_dinov2.lvd142m",
    "vit_large_patch16_dinov3.lvd1689m",
    "vit_large_patch16_siglip_256.v2_webli",
    "vit_large_patch16_siglip_384.v2_webli",
    "vit_large_patch16_siglip_512.v2_webli",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_224.augreg_in21k",
    "vit_small_patch16_224.dino",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_small_patch8_224.dino",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_so400m_patch14_siglip_224.webli",
    "vit_so400m_patch14_siglip_384.webli",
    "vit_so400m_patch14_siglip_224.v2_webli",
    "vit_so400m_patch14_siglip_378.v2_webli",
    "vit_so400m_patch16_siglip_256.v2_webli",
    "vit_so400m_patch16_siglip_384.v2_webli",
    "vit_so400m_patch16_siglip_512.v2_webli",
    "vit_tiny_patch16_224.augreg_in21k",
)
"""The timm models the table lists, each with its weight tag."""


def timm_section(names: Sequence[str] = TIMM_MODELS) -> dict[str, Any]:
    """Facts of each timm model, as they stand in the table."""
    return {name: ask(name) for name in sorted(names)}


def transformers_section() -> dict[str, Any]:
    """Facts of each decoder; raises BuildError when the counted parameters are not those its card states."""
    for name, entry in DECODERS.items():
        counted = read_decoder(entry["config"], where=name).params(entry["config"]["vocab_size"])
        if counted != entry["parameters"]:
            raise BuildError(f"{name}: its config has {counted} parameters, its card says {entry['parameters']}")
    return {name: DECODERS[name] for name in sorted(DECODERS)}


def towers_section(timm: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of each vision tower; raises BuildError when they are not those of its timm twin in `timm`."""
    for name, known in TOWERS.items():
        tower, twin = read_tower(known.facts["config"], where=name), timm[known.twin]
        level, (other,) = tower.level(), twin["levels"]
        statistics = read_statistics(known.facts["preprocessor"], where=name)
        positions = tower.grid[0] * tower.grid[1]
        expected = {
            "depth": (level.depth, other["depth"]),
            "width": (level.width, other["width"]),
            "patch": ([*level.stride], other["stride"]),
            "heads": (level.heads, other["heads"]),
            "prefix_tokens": (tower.prefix_tokens, twin["prefix_tokens"]),
            "statistics": ([[*values] for values in statistics], [twin["mean"], twin["std"]]),
            "parameters": (
                level.stem_params + level.depth * level.block_params - expected_difference(tower),
                other["stem_params"] + positions * other["position_params"] + other["depth"] * other["block_params"],
            ),
        }
        for fact, (found, wanted) in expected.items():
            if found != wanted:
                raise BuildError(f"{name}: {fact} {found}, its timm twin {known.twin} has {wanted}")
    return {name: known.facts for name, known in TOWERS.items()}


def table() -> dict[str, Any]:
    timm = timm_section()
    return {"timm": timm, "transformers": transformers_section(), LIBRARY: towers_section(timm)}


def render(content: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as text: one line per model, so that a change of one model is one line of a diff."""
    sections = []
    for library, entries in content.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in entries.items())
        sections.append(f"{json.dumps(library)}: {{\n{lines}\n }}")
    return "{\n " + ",\n ".join(sections) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fusionkit.testing.architectures", description="The table of architectures."
    )
    parser.add_argument("name", nargs="?", help="timm model to print the facts of")
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--check", action="store_true", help="compare the table with the installed libraries")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.name:
            sys.stdout.write(json.dumps(ask(chosen.name), indent=1) + "\n")
            return 0
        if chosen.write:
            PATH.write_text(render(table()), encoding="utf-8")
            return 0
        if chosen.check:
            same = PATH.read_text(encoding="utf-8") == render(table())
            sys.stdout.write(
                "the table is up to date\n" if same else "the table differs: run with --write and look at the diff\n"
            )
            return 0 if same else 1
    except FusionkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    parser.print_help()
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
