"""`analyze entropy` holds no more for many pictures than for few, and forms attention for the layers asked only."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fusionkit.analysis import measures
from fusionkit.analysis.capture import Scores
from fusionkit.analysis.entropy import analyse
from fusionkit.analysis.outcome import Frame, Outcome
from fusionkit.analysis.photos import find_photos
from fusionkit.analysis.subjects import subjects

DEPTH, BATCH = 4, 2
TOKENS = 24
"""Of 24 x 36 pixels in patches of 6; no other size inside the encoder equals it."""

ENCODER = f"small_vit,depth={DEPTH},image_size=[24, 36],width=32,heads=4"


def entropy_of(count: int, folder: Path, frame: Frame, layers: str | None = None) -> Outcome:
    """The command's own work, on `count` pictures of noise."""
    pictures = folder / f"{count}"
    pictures.mkdir()
    for number in range(count):
        Image.effect_noise((36, 24), 60).convert("RGB").save(pictures / f"{number:02}.png")
    return analyse(subjects([ENCODER]), find_photos(pictures), frame, layers=layers)


# --------------------------------------------------------------------------------------------------------- attention
class CountsAttention(TorchFunctionMode):
    """Counts products that give a number for every pair of tokens; what a fused kernel does inside is not one."""

    formed = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "matmul" in getattr(func, "__name__", "") and result.shape[-2:] == (TOKENS, TOKENS):
            self.formed += 1
        return result


@pytest.mark.parametrize(("layers", "asked"), [("2,4", [2, 4]), ("3", [3]), ("all", [1, 2, 3, 4])])
def test_attention_is_formed_once_for_each_layer_asked(layers: str, asked: list[int], tmp_path: Path) -> None:
    """One picture a batch, as attention is formed picture by picture: two layers asked are two products a batch."""
    counter = CountsAttention()
    after: list[int] = []
    frame = Frame(tmp_path / "report", batch=1, progress=lambda *_: after.append(counter.formed))
    with counter:
        outcome = entropy_of(3, tmp_path, frame, layers)
    assert after == [0, len(asked), 2 * len(asked), 3 * len(asked)]
    (report,) = outcome.data["encoders"].values()
    assert report["measure"] == measures.PATCH
    assert [row["layer"] for row in report["layers"]] == asked


def test_a_bare_forward_forms_none() -> None:
    (subject,) = subjects([ENCODER])
    encoder: Any = subject.open()
    counter = CountsAttention()
    with torch.inference_mode(), counter:
        encoder.forward_layers(torch.zeros(1, 3, 24, 36), [2, 4])
    assert subject.info.grid.tokens == TOKENS
    assert counter.formed == 0


# ------------------------------------------------------------------------------------------------------------ memory
class Live(NamedTuple):
    tensors: int
    bytes: int


def live() -> Live:
    """The tensors made since `gc.freeze()` that are still there; views of one storage share its bytes."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return Live(len(tensors), sum(storages.values()))


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """Hide from `gc` what other tests left behind."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
def test_six_times_the_pictures_leave_no_more_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    between: list[Live] = []
    inside: list[Live] = []

    def look(scores: Scores, picture: int) -> dict[str, float]:
        if picture == BATCH - 1:
            inside.append(live())
        return attention_entropy(scores, picture)

    attention_entropy = measures.attention_entropy
    monkeypatch.setattr(measures, "attention_entropy", look)
    peaks = {}
    for count in (4, 24):
        between.clear()
        inside.clear()
        frame = Frame(tmp_path / f"report{count}", batch=BATCH, progress=lambda *_: between.append(live()))
        entropy_of(count, tmp_path, frame)
        assert len(between) == 1 + count // BATCH, "once before the first batch and once after each"
        assert len(inside) == count // BATCH * DEPTH, "once a layer and batch, while its queries and keys are held"
        assert len(set(between[1:])) == 1, "every batch leaves what the first left"
        assert between[1].bytes > between[0].bytes > 0, "the weights are seen, and the batch's pixels beside them"
        peaks[count] = (max(between), max(inside), max(each.bytes for each in inside))
    assert peaks[24] == peaks[4]
