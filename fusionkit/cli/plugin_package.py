"""What `fusionkit plugin new` writes: a distribution with spec, block, tests, README and licence, from templates."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata, resources
from pathlib import Path
from string import Template

from fusionkit import discovery
from fusionkit.blocks.language_models.vocabulary import tokenizer_size
from fusionkit.errors import UsageError

LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "none": ""}
"""What `--licence` takes, and how package metadata calls it."""

USAGE = {
    "encoders": "streams:\n  mine:\n    encoder: {type: $name}\n",
    "selectors": "streams:\n  mine:\n    select: {type: $name}\n",
    "mixers": "streams:\n  mine:\n    steps:\n      mix: {type: $name}\n",
    "adapters": "fusion:\n  refine: {type: $name}\n",
    "poolers": "fusion:\n  pool: {type: $name}\n",
    "connectors": "fusion:\n  join: {type: $name, query: semantic, memory: spatial}\n",
    "injectors": "injectors:\n  visual: {type: $name}\n",
    "language_models": "language_model: {type: $name}\n",
    "objectives": "train:\n  stages:\n    first:\n      objectives:\n        small: {type: $name, stream: mine}\n",
    "box_tokenizers": "box_tokenizer: {type: $name}\n",
    "croppers": "cropper: {type: $name}\n",
    "datasets": "train:\n  data:\n    - {type: $name}\n",
    "metrics": "evaluate:\n  - {metric: $name, data: {type: synthetic_scenes}}\n",
}
"""Where a block of each family stands in a recipe."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a new distribution: its entry point."""

    family: str
    name: str
    target: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A distribution to write. `modules` are the files of its package besides `__init__.py`."""

    distribution: str
    summary: str
    blocks: Sequence[Block]
    modules: Mapping[str, str]

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")


def distribution_of(name: str) -> str:
    """`acme.sam_2` -> `acme-sam-2`; raises UsageError for names that plugins cannot have."""
    if not discovery.is_vendor_name(name):
        raise UsageError(
            f"'{name}' is not vendor.name in lower-case letters, digits and underscores; for example acme.sam2 "
            "(names without a dot belong to fusionkit)"
        )
    if name.split(".")[0] == discovery.OWNER:
        raise UsageError(f"'{name}': the vendor 'fusionkit' would look like ours; use your own, for example acme.sam2")
    distribution = discovery.normalised(name)
    package = distribution.replace("-", "_")
    if importlib.util.find_spec(package) is not None:
        raise UsageError(
            f"'{name}' would be the Python package '{package}', which is installed here; choose another name"
        )
    return distribution


def from_template(name: str, family: str) -> Draft:
    """A new block of a family that does something simple, for its author to replace. Raises UsageError."""
    distribution = distribution_of(name)
    package, own = distribution.replace("-", "_"), name.split(".")[1]
    words = "".join(part.capitalize() for part in own.split("_")) or "My"
    singular = "".join(part.capitalize() for part in family.removesuffix("s").split("_"))
    values = {
        "name": name,
        "package": package,
        "Block": words + singular,
        "Config": f"{words}{singular}Config",
        "CONSTANT": own.upper(),
        "tokenizer_size": str(tokenizer_size("builtin:tiny")),
    }
    modules = {f"{stem}.py": fill(f"{family}/{stem}.py", values) for stem in ("spec", "block")}
    summary = f"The {family.removesuffix('s').replace('_', ' ')} {name} for fusionkit"
    return Draft(distribution, summary, [Block(family, name, f"{package}.spec:{own.upper()}")], modules)


def files(draft: Draft, licence: str, author: str) -> dict[str, str]:
    """Every file of the distribution, by its path."""
    if licence not in LICENCES:
        raise UsageError(f"--licence {licence}: expected one of {', '.join(LICENCES)}")
    spdx = LICENCES[licence]
    groups: dict[str, list[Block]] = {}
    for block in draft.blocks:
        groups.setdefault(block.family, []).append(block)
    values = {
        "distribution": draft.distribution,
        "package": draft.package,
        "summary": draft.summary,
        "fusionkit_version": metadata.version("fusionkit"),
        "licence_lines": f'license = "{spdx}"\nlicense-files = ["LICENSE"]\n' if spdx else "",
        "licence_text": f"Licence: {spdx}." if spdx else "No licence is given: choose one before you publish this.",
        "entry_points": "".join(
            f'[project.entry-points."fusionkit.{family}"]\n'
            + "".join(f'"{block.name}" = "{block.target}"\n' for block in blocks)
            + "\n"
            for family, blocks in groups.items()
        ),
        "show_lines": "".join(
            f"    fusionkit show {block.name}\n" if block.family in discovery.FAMILY_NAMES else ""
            for block in draft.blocks
        ),
        "usage": "\n\n".join(
            "```yaml\n" + Template(USAGE[block.family]).substitute(name=block.name) + "```" for block in draft.blocks
        ),
        "year": str(date.today().year),
        "author": author,
    }
    written = {
        "pyproject.toml": fill("common/pyproject.toml", values),
        "README.md": fill("common/README.md", values),
        ".gitignore": "__pycache__/\n*.egg-info/\nbuild/\ndist/\n.venv/\n",
        f"{draft.package}/__init__.py": f'"""{draft.summary}."""\n',
        f"{draft.package}/py.typed": "",
        **{f"{draft.package}/{path}": text for path, text in draft.modules.items()},
        "tests/test_conformance.py": fill("common/test_conformance.py", values),
    }
    if spdx:
        written["LICENSE"] = fill(f"licences/{licence}", values)
    return written


def write(folder: Path, contents: Mapping[str, str]) -> None:
    """Write the files into a folder that must not exist yet. Raises UsageError."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(f"{folder} exists already and is left as it is; name another folder with -o") from None
    for path, text in contents.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text of a shipped template with its placeholders filled in."""
    text = (resources.files("fusionkit") / "assets" / "plugin" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)
