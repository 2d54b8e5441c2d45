"""How many entries a tokenizer has, read from its files. Torch-free."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

from fusionkit import architectures
from fusionkit.blocks.language_models.gguf_facts import gguf_vocabulary, is_gguf
from fusionkit.errors import ShapeError

BUILTIN = "builtin:"


def tokenizer_size(source: str) -> int:
    """Entries of the tokenizer `builtin:NAME`, in a folder (tokenizer.json), in a .gguf file or of a listed hub id.

    Raises ShapeError when it is none of these, or its file cannot be read.
    """
    if source.startswith(BUILTIN):
        name = source.removeprefix(BUILTIN)
        file = Path(str(resources.files("fusionkit") / "assets" / f"{name}_tokenizer" / "tokenizer.json"))
        if not name.isidentifier() or not file.is_file():
            raise ShapeError(
                f"no tokenizer '{source}' ships with fusionkit", field="tokenizer", hint="for example builtin:tiny"
            )
        return _entries(file)
    if is_gguf(source):
        return gguf_vocabulary(source)
    if Path(source).is_dir():
        return _entries(Path(source) / "tokenizer.json")
    entry = architectures.facts("transformers", source)
    if entry is None:
        near = architectures.near("transformers", source)
        raise ShapeError(
            f"tokenizer '{source}' is neither a folder here nor in the built-in table"
            + (f"; listed and similar: {', '.join(near)}" if near else ""),
            field="tokenizer",
            hint="give a folder with tokenizer.json, or builtin:tiny",
        )
    return int(entry["tokenizer_size"])


@cache
def _entries(file: Path) -> int:
    """One more than the highest id of a tokenizer.json, added tokens included."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        ids: list[int] = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        ids += [token["id"] for token in content.get("added_tokens") or ()]
        return 1 + max(ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShapeError(f"{file}: not a readable tokenizer.json ({error})", field="tokenizer") from error
