"""Conversations as LLaVA and many after it write them: one JSON list (or one object per line) with an image folder.

    [{"id": "1", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat colour is the bus?"},
                        {"from": "gpt", "value": "White and red."}]}]

- `image`: a picture file, relative to `images` (the folder of the JSON file if not given), or a list of several, which
  are all shown. Left out: questions without a picture.
- `conversations`: questions (`human`) and answers (`gpt`) in turn; each question is asked on its own. `<image>` marks
  are taken off: pictures are shown before the question.
- A first message from `system` is left out, other keys are not read. Boxes written as text stay text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionkit.blocks.datasets.picture_files import on_disk
from fusionkit.blocks.datasets.rows import JsonLines, read_json, type_name
from fusionkit.blocks.datasets.specs import LlavaConfig
from fusionkit.errors import DataError
from fusionkit.plugin import IMAGE_TOKEN, BlockSite
from fusionkit.sample import Provenance, Sample, Turn

SPEAKERS = ("human", "gpt")


class Llava:
    """Map-style dataset over the entries; raises DataError naming the file and the entry, counted from 1."""

    label_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, config: LlavaConfig, site: BlockSite | None = None) -> None:
        self.path = Path(config.path)
        self.images = Path(config.images) if config.images is not None else self.path.parent
        self._lines = JsonLines(self.path, "the dataset `llava`") if self.path.suffix == ".jsonl" else None
        self._entries: list[Any] = []
        if self._lines is None:
            entries = read_json(self.path, "the dataset `llava` needs a JSON list of conversations")
            if not isinstance(entries, list) or not entries:
                raise DataError(
                    f"{self.path}: expected a list of conversations with something in it, got {type_name(entries)}"
                )
            self._entries = entries

    def __len__(self) -> int:
        return len(self._entries) if self._lines is None else len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has entries 0..{len(self) - 1}, got {index}")
        entry, place = self._entry(index)
        where = f"{self.path}:{place}"
        pictures = [on_disk(self.images / name, where) for name in _images(entry, where)]
        turns = tuple(_turns(entry, where))
        provenance = Provenance(str(self.path), place)
        if not pictures:
            return Sample(None, None, turns, provenance)
        first, *others = pictures
        return Sample(first[0], first[1], turns, provenance, more=tuple(other[0] for other in others))

    def _entry(self, index: int) -> tuple[dict[str, Any], int]:
        if self._lines is not None:
            return self._lines.row(index), self._lines.line(index)
        entry = self._entries[index]
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}:{index + 1}: expected an object {{...}}, got {type_name(entry)}")
        return entry, index + 1


def _images(entry: dict[str, Any], where: str) -> list[str]:
    given = entry.get("image")
    if given is None or given == "":
        return []
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: 'image' must be a file name or a list of them, got {given!r}")
    return names


def _turns(entry: dict[str, Any], where: str) -> Iterator[Turn]:
    messages = entry.get("conversations")
    if not isinstance(messages, list):
        raise DataError(f"{where}: 'conversations' must be a list of messages, got {type_name(messages)}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise DataError(f"{where}: conversations[{number}] must be an object, got {type_name(message)}")
    if messages and messages[0].get("from") == "system":
        messages = messages[1:]
    if not messages or len(messages) % 2:
        raise DataError(f"{where}: 'conversations' must be questions and answers in turn, got {len(messages)} messages")
    texts = []
    for number, message in enumerate(messages):
        speaker, value = SPEAKERS[number % 2], message.get("value")
        if message.get("from") != speaker or not isinstance(value, str):
            raise DataError(
                f'{where}: conversations[{number}] must be {{"from": "{speaker}", "value": "..."}}, got '
                f"from {message.get('from')!r} a {type_name(value)}"
            )
        text = " ".join(value.replace(IMAGE_TOKEN, " ").split()) if number % 2 == 0 else value.strip()
        if not text:
            raise DataError(f"{where}: conversations[{number}] is empty; expected text in 'value'")
        texts.append(text)
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        yield Turn(question, (answer,), "count" if answer.isascii() and answer.isdigit() else "free")
