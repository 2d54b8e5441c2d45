"""What Qwen-VL and InternVL share: `<ref>label</ref><box>...</box>` around numbers in text. Torch-free."""

from __future__ import annotations

import re

from fusionkit.blocks.box_tokenizers.frame import BoxFormat, checked_label

NUMBER = r"[0-9]{1,5}"
REF = r"(?:<ref>([^<>]*+)</ref>\s*+)?"
_LABEL = re.compile(r"[^<>\n]+")


class TaggedFormat(BoxFormat):
    """Boxes in `<box>` tags after their label in `<ref>` tags."""

    stray = re.compile(r"<box>[^<]*+(?:</box>)?|</box>")

    def vocabulary(self) -> tuple[str, ...]:
        return "<box>", "</box>", "<ref>", "</ref>"

    def ref(self, label: str) -> str:
        """The label's tags, or nothing."""
        return f"<ref>{checked_label(label, _LABEL, self.config.type)}</ref>" if label else ""
