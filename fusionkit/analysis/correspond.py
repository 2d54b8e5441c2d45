"""`fusionkit analyze correspond`: do the tokens of two encoders match by position? Equations in `matching`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from fusionkit.analysis.annotated import centres
from fusionkit.analysis.capture import watch
from fusionkit.analysis.curves import check_plots
from fusionkit.analysis.matching import MEASURES, Bridge, Shared, equations, score
from fusionkit.analysis.matrix import Heat, draw_matrices
from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.overlay import colours, fit
from fusionkit.analysis.page import Figure, Section
from fusionkit.analysis.partial import Partial
from fusionkit.analysis.photos import Photo, Reader
from fusionkit.analysis.pictures import picture_outcome, representative
from fusionkit.analysis.running import Running
from fusionkit.analysis.sheet import Row, Sheet
from fusionkit.analysis.stream import PARTIAL
from fusionkit.analysis.subjects import Subject, weights_digest
from fusionkit.analysis.sums import Sums
from fusionkit.errors import DataError, UsageError

SAME, OTHER = "same picture", "other picture"
HALVES = 2
Pair = tuple[int, int]
"""A layer of A and a layer of B."""


@dataclass(slots=True)
class Two:
    """Both encoders; the tokens of the last few pictures, so that the next one's control need not see it again."""

    subjects: tuple[Subject, Subject]
    encoders: tuple[nn.Module, nn.Module]
    layers: tuple[tuple[int, ...], tuple[int, ...]]
    device: str
    recent: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        return [(i, j) for i in self.layers[0] for j in self.layers[1]]

    def tokens(self, which: int, photos: Sequence[Photo]) -> dict[int, Tensor]:
        """Layer -> x_BND of one encoder, on the CPU."""
        reader, found = Reader(self.subjects[which].info), dict[int, Tensor]()
        pixels = reader.pixels([photo.open() for photo in photos]).to(self.device)

        def keep(layer: int, x_BND: Tensor) -> None:
            found[layer] = x_BND.float().cpu()

        watch(self.encoders[which], self.subjects[which].info, pixels, self.layers[which], keep)
        return found

    def of_b(self, photo: Photo) -> dict[int, Tensor]:
        """B's tokens of one picture; those of the last two are kept."""
        if photo.name not in self.recent:
            while len(self.recent) > 1:
                del self.recent[next(iter(self.recent))]
            self.recent[photo.name] = self.tokens(1, [photo])
        return self.recent[photo.name]


def analyse(
    subjects: Sequence[Subject],
    photos: Sequence[Photo],
    frame: Frame,
    *,
    layers: Sequence[str | None] = (None, None),
    strength: float = 1e-2,
    show: int = 12,
) -> Outcome:
    """Fit the maps on each half, match the other, and draw where every token's match lies.

    Raises UsageError unless two encoders are named, DataError for fewer than four pictures.
    """
    if len(subjects) != 2:
        named = ", ".join(subject.label for subject in subjects)
        raise UsageError(f"expected two encoders to compare, got {len(subjects)}: {named}; name streams as NAME:STREAM")
    if len(photos) < 2 * HALVES:
        raise DataError(
            f"expected at least {2 * HALVES} pictures (one half fits the map, the other is measured), got {len(photos)}"
        )
    check_plots()
    a, b = subjects
    chosen = (representative(layers[0], a), representative(layers[1], b))
    two = Two((a, b), (a.open(frame.device), b.open(frame.device)), chosen, frame.device)
    shared = Shared.of(a.info.grid, b.info.grid)
    settings = {
        "analysis": "correspond",
        "encoders": [a.source, b.source],
        "configs": [dict(a.config), dict(b.config)],
        "weights": [weights_digest(encoder) for encoder in two.encoders],
        "layers": [list(each) for each in chosen],
    }
    name = f"correspond-{a.label}-{b.label}"
    sums = _fit(two, shared, photos, settings, frame, name)
    bridges = {
        (half, pair): Bridge.solve(_of(sums, half, pair), strength) for half in range(HALVES) for pair in two.pairs
    }
    tested = {**settings, "ridge": strength, "fitted on": len(photos)}
    partial = _match(two, shared, bridges, photos, tested, frame, name)
    return _outcome(two, shared, partial, photos, frame, show)


def _fit(
    two: Two, shared: Shared, photos: Sequence[Photo], settings: Mapping[str, Any], frame: Frame, name: str
) -> dict[str, Tensor]:
    """The sums of both halves: every second picture belongs to the other."""
    half_of = {photo.name: place % HALVES for place, photo in enumerate(photos)}
    # A picture that changes halves (one before it was removed) may not stay in the sums.
    halves = {"halves": "".join(str(half) for half in half_of.values()), "pictures": [photo.name for photo in photos]}
    sums = Sums(frame.output / PARTIAL / f"{name}.safetensors", {**settings, **halves}, photos, fresh=frame.fresh)

    def step(group: list[Photo]) -> None:
        of_a, of_b = two.tokens(0, group), two.tokens(1, group)
        parts: dict[str, Any] = {}
        for half in range(HALVES):
            places = [place for place, photo in enumerate(group) if half_of[photo.name] == half]
            if not places:
                continue
            for i, j in two.pairs:
                found = equations(of_a[i][places], of_b[j][places], shared)
                if j == two.layers[1][0]:
                    parts[f"{half} {i} gram"] = lambda value=found["gram"]: value
                if i == two.layers[0][0]:
                    parts[f"{half} {j} sum"] = lambda value=found["sum"]: value
                    parts[f"{half} {j} count"] = lambda value=found["count"]: value
                parts[f"{half} {i} {j} products"] = lambda value=found["products"]: value
        sums.add(group, parts)

    sums.run(photos, frame.batch, step, lambda done: frame.progress("correspond, fitting", done, len(photos)))
    return sums.matrices


def _of(sums: Mapping[str, Tensor], half: int, pair: Pair) -> dict[str, Tensor]:
    i, j = pair
    return {
        "gram": sums[f"{half} {i} gram"],
        "products": sums[f"{half} {i} {j} products"],
        "sum": sums[f"{half} {j} sum"],
        "count": sums[f"{half} {j} count"],
    }


def _match(
    two: Two,
    shared: Shared,
    bridges: Mapping[tuple[int, Pair], Bridge],
    photos: Sequence[Photo],
    settings: Mapping[str, Any],
    frame: Frame,
    name: str,
) -> Partial:
    partial = Partial(frame.output / PARTIAL / f"{name}.jsonl", settings, fresh=frame.fresh)
    for place, photo in enumerate(photos):
        if not partial.has(photo):
            other = photos[place - HALVES]  # of the same half: neither has fitted the map
            of_a, of_other, of_b = two.tokens(0, [photo]), two.of_b(other), two.of_b(photo)
            row: dict[str, Any] = {}
            for i, j in two.pairs:
                bridge = bridges[1 - place % HALVES, (i, j)]
                similarity_NM = bridge.similarity(of_a[i][0], of_b[j][0])
                row[f"{i} {j}"] = {
                    SAME: score(similarity_NM, shared),
                    OTHER: score(bridge.similarity(of_a[i][0], of_other[j][0]), shared),
                    "chosen": similarity_NM.argmax(-1).tolist(),
                }
            partial.add(photo, row)
        frame.progress("correspond, matching", place + 1, len(photos))
    return partial


# ----------------------------------------------------------------------------------------------------------- output
def _outcome(two: Two, shared: Shared, partial: Partial, photos: Sequence[Photo], frame: Frame, show: int) -> Outcome:
    means: dict[tuple[Pair, str, str], Running] = {}
    for row in partial.values(photos):
        for i, j in two.pairs:
            for control in (SAME, OTHER):
                for measure in MEASURES:
                    run = means.setdefault(((i, j), control, measure), Running())
                    if (value := row[f"{i} {j}"][control][measure]) is not None:
                        run.add(value)
    best = max(two.pairs, key=lambda pair: means[pair, SAME, "right"].mean)
    a, b = two.subjects
    rows = [_row(pair, means) for pair in two.pairs]
    table = Table(f"tokens of {a.label} matched with {b.label} (chance: {shared.chance:.3g} right)", rows)
    figure = draw_matrices([_heat(two, means, control) for control in (SAME, OTHER)])
    words = _words(two, shared, means, best)
    caption = "Share of right matches for each pair of layers; left the same picture, right another one (the control)"
    made = picture_outcome(
        name="correspond",
        title=f"Tokens of {a.label} and {b.label}, matched by position",
        explanation=f"Colours are places in the picture. Right of it the place of every token's match, for layer {best[0]} "
        f"of {a.label} and layer {best[1]} of {b.label}: where the encoders agree on places, it looks like the first.",
        photos=photos,
        sheets=_sheets(two, partial, photos, best),
        tables=[table],
        lines=words,
        frame=frame,
        show=show,
        before=[Section("Right matches", words, [Figure(figure["png"], caption)])],
    )
    data = {
        **made.data,
        "encoders": [a.source, b.source],
        "chance": {"right": shared.chance, "distance": shared.chance_distance},
        "best": {"layers": list(best), **{m: means[best, SAME, m].summary() for m in MEASURES}},
        "pairs": [
            {
                "layers": list(pair),
                **{control: {m: means[pair, control, m].summary() for m in MEASURES} for control in (SAME, OTHER)},
            }
            for pair in two.pairs
        ],
    }
    files = {
        **made.files,
        "correspond.json": data,
        "correspond.png": figure["png"],
        "correspond.svg": figure["svg"],
    }
    return Outcome(data, files, words, [table])


def _row(pair: Pair, means: Mapping[tuple[Pair, str, str], Running]) -> dict[str, object]:
    row: dict[str, object] = {"layer of A": pair[0], "layer of B": pair[1]}
    for measure in MEASURES:
        row[measure] = means[pair, SAME, measure].mean
    row["right ±"] = means[pair, SAME, "right"].half_width
    row["right, other picture"] = means[pair, OTHER, "right"].mean
    return row


def _heat(two: Two, means: Mapping[tuple[Pair, str, str], Running], control: str) -> Heat:
    values = [[means[(i, j), control, "right"].mean for j in two.layers[1]] for i in two.layers[0]]
    names = [[str(layer) for layer in layers] for layers in two.layers]
    a, b = (subject.label for subject in two.subjects)
    return Heat(control, values, names[0], names[1], f"layer of {b}", f"layer of {a}")


def _words(two: Two, shared: Shared, means: Mapping[tuple[Pair, str, str], Running], best: Pair) -> list[str]:
    a, b = two.subjects
    right, other = means[best, SAME, "right"].mean, means[best, OTHER, "right"].mean
    mutual, exact = means[best, SAME, "mutual"].mean, means[best, SAME, "mutual right"].mean
    return [
        f"Layer {best[0]} of {a.label} and layer {best[1]} of {b.label} match best: {right:.1%} of tokens find a token "
        f"within one cell of their place; {mutual:.1%} choose each other, and {exact:.1%} of those are right.",
        f"Guessing gives {shared.chance:.1%}; another picture's tokens {other:.1%}: that much is position alone, the rest "
        "is what the picture shows there.",
    ]


def _sheets(two: Two, partial: Partial, photos: Sequence[Photo], best: Pair) -> Iterator[Sheet]:
    a, b = (subject.info.grid for subject in two.subjects)
    for photo, row in zip(photos, partial.values(photos), strict=True):
        picture = fit(photo.open())
        chosen = row[f"{best[0]} {best[1]}"]["chosen"]
        own = _places(centres(a).numpy()).reshape(a.height, a.width, 3)
        found = _places(centres(b).numpy()[chosen]).reshape(a.height, a.width, 3)
        tiles = [picture, colours(own, picture.size), colours(found, picture.size)]
        title = f"{two.subjects[0].label} layer {best[0]} to {two.subjects[1].label} layer {best[1]}"
        yield Sheet(photo.name, [Row(title, ["photo", "places", "places of the matches"], tiles)])


def _places(centres_N2: Any) -> Any:
    """A colour for every place: red grows to the right, green downwards, blue to the left."""
    x, y = centres_N2[:, 0], centres_N2[:, 1]
    return np.stack([x, y, 1 - x], axis=-1)
