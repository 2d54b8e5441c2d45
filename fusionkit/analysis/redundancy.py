"""`fusionkit analyze redundancy`: how alike the layers of an encoder are, and what their mixture V is made of.

With z_l the tokens of layer l, each at mean 0 and variance 1 over its channels (as the mixers normalise them):

    CKA(i, j)     |Z_iᵀ Z_j|²_F / (|Z_iᵀ Z_i|_F |Z_jᵀ Z_j|_F), Z centred over all patch tokens of all pictures
    cosine(i, j)  mean over tokens of cos(z_i, z_j), token by token
    V             Σ_l w_l M_l z_l: its singular values σ, and its effective rank exp(-Σ p log p), p = σ / Σσ

CKA sees the spaces only: no square orthogonal map can change it. V is measured for the maps of a checkpoint's own
mixer, and for controls that know nothing: M_l = I, random rotations, and free random matrices with entries
N(0, 1/D). The covariance of V for any maps follows from the products Z_iᵀ Z_j: one pass over the pictures serves all.

Shapes: N tokens, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionkit.analysis import linear
from fusionkit.analysis.capture import watch
from fusionkit.analysis.curves import Curve, Panel, check_plots, draw
from fusionkit.analysis.matrix import Heat, draw_matrices
from fusionkit.analysis.outcome import Frame, Outcome, Table
from fusionkit.analysis.page import Figure, Section, page
from fusionkit.analysis.photos import Photo, Reader
from fusionkit.analysis.stream import PARTIAL, parse_layers
from fusionkit.analysis.subjects import SEED, Subject, weights_digest
from fusionkit.analysis.sums import Sums
from fusionkit.analysis.trained import Mixer, mixer_of
from fusionkit.ops.diagnostics import token_cosine
from fusionkit.ops.orthogonal import haar

LIMIT = 2**30
"""Bytes of sums that all layers may take by default."""

WHAT_MAPS_CANNOT_CHANGE = (
    "A square orthogonal map cannot change how similar two layers' token spaces are: their linear CKA, principal "
    "angles, singular values and effective rank are the same for Q z as for z, whatever Q. What the maps change is how "
    "layers add up: the cosine token by token, and through it the spectrum of the sum V."
)

IDENTITY, ROTATIONS, FREE = "identity", "random rotations", "random free"


@dataclass(frozen=True, slots=True)
class Measured:
    """One encoder: `cka` and `cosine` [L, L] over `layers`; `spectra` of V by the maps that made it."""

    subject: Subject
    layers: tuple[int, ...]
    mixed: tuple[int, ...]
    tokens: int
    cka: Tensor
    cosine: Tensor
    ranks: Mapping[int, float]
    spectra: Mapping[str, Tensor]
    words: str


def analyse(
    subjects: Sequence[Subject], photos: Sequence[Photo], frame: Frame, *, layers: str | None = None
) -> Outcome:
    """Measure every encoder, one after the other. Raises UsageError for a layer that is not there."""
    check_plots()
    asked = {subject.label: _layers(subject, layers) for subject in subjects}
    return _outcome([_measure(subject, photos, asked[subject.label], frame) for subject in subjects], len(photos))


def _layers(subject: Subject, text: str | None) -> tuple[int, ...]:
    """The layers asked for; else all, or as many evenly spaced ones as fit into `LIMIT` of sums."""
    chosen = parse_layers(text, subject)
    if text is not None:
        return chosen
    count = len(chosen)
    while count > 2 and count * (count + 1) // 2 * subject.info.width**2 * 8 > LIMIT:
        count -= 1
    if count == len(chosen):
        return chosen
    return tuple(sorted({chosen[round(place * (len(chosen) - 1) / (count - 1))] for place in range(count)}))


def _measure(subject: Subject, photos: Sequence[Photo], layers: tuple[int, ...], frame: Frame) -> Measured:
    encoder, mixer = subject.open(frame.device), mixer_of(subject, frame.device)
    mixed = layers if mixer is None else mixer.layers
    every = tuple(sorted({*layers, *mixed}))
    settings = {
        "analysis": "redundancy",
        "encoder": subject.source,
        "config": dict(subject.config),
        "weights": weights_digest(encoder),
        "layers": list(every),
        "mixer": None if mixer is None else weights_digest(mixer.module),
    }
    sums = Sums(frame.output / PARTIAL / f"redundancy-{subject.label}.safetensors", settings, photos, fresh=frame.fresh)
    reader = Reader(subject.info)

    def step(group: list[Photo]) -> None:
        pixels = reader.pixels([photo.open() for photo in group]).to(frame.device)
        found: dict[int, Tensor] = {}
        watch(encoder, subject.info, pixels, every, on_tokens=found.__setitem__)
        sums.add(group, products(found, mixer))

    sums.run(photos, frame.batch, step, lambda done: frame.progress(f"redundancy {subject.label}", done, len(photos)))
    return summarise(subject, layers, mixed, sums.matrices, mixer)


def products(layers: Mapping[int, Tensor], mixer: Mixer | None) -> dict[str, Any]:
    """What one batch adds to the sums: name -> a function that gives it, so that one is alive at a time."""
    names = list(layers)
    with torch.inference_mode():
        z_ND = {layer: linear.normalised(x_BND).flatten(0, 1) for layer, x_BND in layers.items()}
        parts: dict[str, Any] = {
            "count": lambda: torch.tensor([float(len(z_ND[names[0]]))]),
            "cosine": lambda: token_cosine(list(z_ND.values())) * len(z_ND[names[0]]),
        }
        for place, i in enumerate(names):
            parts[f"sum {i}"] = lambda i=i: z_ND[i].double().sum(0)
            for j in names[place:]:
                parts[f"product {i} {j}"] = lambda i=i, j=j: z_ND[i].T @ z_ND[j]
        if mixer is not None:
            v_NM = mixer.module([layers[layer] for layer in mixer.layers]).flatten(0, 1).float()
            parts["sum v"] = lambda: v_NM.double().sum(0)
            parts["product v v"] = lambda: v_NM.T @ v_NM
    return parts


def summarise(
    subject: Subject,
    layers: tuple[int, ...],
    mixed: tuple[int, ...],
    sums: Mapping[str, Tensor],
    mixer: Mixer | None = None,
) -> Measured:
    """CKA, cosine, spectra and ranks from the sums."""
    count = int(sums["count"])
    every = sorted({*layers, *mixed})

    def covariance(i: int, j: int) -> Tensor:
        if j < i:
            return covariance(j, i).T
        return linear.centred(sums[f"product {i} {j}"], sums[f"sum {i}"], sums[f"sum {j}"], count)

    own = {layer: covariance(layer, layer) for layer in every}
    cka = torch.tensor([[linear.cka(own[i], own[j], covariance(i, j)) for j in layers] for i in layers])
    places = [every.index(layer) for layer in layers]
    gains = [torch.ones(subject.info.width) / len(mixed)] * len(mixed) if mixer is None else list(mixer.gains())
    rows = [[covariance(i, j) for j in mixed] for i in mixed]
    spectra = {
        name: linear.singular_values(linear.of_sum(rows, maps)) for name, maps in controls(gains, subject.info.width)
    }
    if mixer is not None:
        v_covariance = linear.centred(sums["product v v"], sums["sum v"], sums["sum v"], count)
        spectra = {f"its own ({mixer.kind})": linear.singular_values(v_covariance), **spectra}
    ranks = {layer: linear.effective_rank(linear.singular_values(own[layer])) for layer in layers}
    cosine = (sums["cosine"] / count)[places][:, places]
    weights = "equal weights" if mixer is None else "its learned weights"
    words = f"V over layers {', '.join(map(str, mixed))} with {weights}"
    return Measured(subject, layers, mixed, count, cka, cosine, ranks, spectra, words)


def controls(gains: Sequence[Tensor], width: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Maps that know nothing, with each layer's weight and norm gain [D] in them; random ones of seed 0."""
    scaled = [gain.double() for gain in gains]
    yield IDENTITY, [torch.diag(gain) for gain in scaled]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield ROTATIONS, [haar(1, width, width)[0] * gain for gain in scaled]
        yield FREE, [torch.randn(width, width, dtype=torch.float64) / width**0.5 * gain for gain in scaled]


# --------------------------------------------------------------------------------------------------------- output
def _outcome(measured: Sequence[Measured], images: int) -> Outcome:
    files: dict[str, Any] = {}
    lines, tables, sections, encoders = [], [], [], {}
    for each in measured:
        label = each.subject.label
        matrices, spectra = draw_matrices(_heats(each)), draw([_panel(each)])
        files |= {f"{label}.redundancy.{kind}": content for kind, content in matrices.items()}
        files |= {f"{label}.spectrum.{kind}": content for kind, content in spectra.items()}
        words = _words(each)
        of_layers = Table(f"{label}: layers", _layer_rows(each))
        of_v = Table(f"{label}: V", _spectrum_rows(each))
        tables += [of_layers, of_v]
        lines += words
        figures = [
            Figure(matrices["png"], f"{label}: linear CKA and cosine between layers; bright is alike"),
            Figure(spectra["png"], f"{label}: singular values of V, as shares of the largest (log10)"),
        ]
        sections.append(Section(label, words, figures, [of_v, of_layers]))
        encoders[label] = _data(each)
    lines.append(WHAT_MAPS_CANNOT_CHANGE)
    data = {
        "analysis": "redundancy",
        "images": images,
        "encoders": encoders,
        "note": WHAT_MAPS_CANNOT_CHANGE,
        "seed_of_controls": SEED,
    }
    lead = f"{images} picture{'s' * (images != 1)}; tokens at mean 0 and variance 1, as the mixers normalise them"
    about = Section("What can change and what cannot", [WHAT_MAPS_CANNOT_CHANGE])
    files |= {"redundancy.json": data, "redundancy.html": page("Redundancy of layers", lead, [about, *sections])}
    return Outcome(data, files, lines, tables)


def _heats(each: Measured) -> list[Heat]:
    names, lowest = [str(layer) for layer in each.layers], float(each.cosine.min())
    return [
        Heat("linear CKA", each.cka.tolist(), names, names, "layer", "layer"),
        Heat("cosine, token by token", each.cosine.tolist(), names, names, "layer", "layer", min(0.0, lowest)),
    ]


def _panel(each: Measured, shown: int = 40) -> Panel:
    curves = []
    for name, sigma in each.spectra.items():
        count = int((sigma > sigma[0] * 1e-4).sum())
        places = sorted({round(place * (count - 1) / max(1, shown - 1)) for place in range(shown)})
        shares = (sigma / sigma[0]).log10()
        label = f"{name}: {linear.effective_rank(sigma):.4g}"
        curves.append(Curve(label, [place + 1 for place in places], [float(shares[place]) for place in places]))
    return Panel("spectrum of V", curves, "direction (legend: effective rank)", "log10 of σ / largest σ")


def _words(each: Measured) -> list[str]:
    label = each.subject.label
    ranks = {name: linear.effective_rank(sigma) for name, sigma in each.spectra.items()}
    told = ", ".join(f"{rank:.4g} with {name} maps" for name, rank in ranks.items())
    words = [f"{label}: effective rank of {each.words}: {told} (at most {each.subject.info.width})."]
    if len(each.layers) > 1:
        neighbours = [float(each.cka[place, place + 1]) for place in range(len(each.layers) - 1)]
        most = max(range(len(neighbours)), key=neighbours.__getitem__)
        words.append(
            f"{label}: most alike are layers {each.layers[most]} and {each.layers[most + 1]} (CKA "
            f"{neighbours[most]:.3f}); first and last have CKA {float(each.cka[0, -1]):.3f}."
        )
    return words


def _layer_rows(each: Measured) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for place, layer in enumerate(each.layers):
        others = [float(each.cka[place, other]) for other in range(len(each.layers)) if other != place]
        follows = place + 1 < len(each.layers)
        rows.append(
            {
                "layer": layer,
                "effective rank": each.ranks[layer],
                "CKA with next": float(each.cka[place, place + 1]) if follows else None,
                "cosine with next": float(each.cosine[place, place + 1]) if follows else None,
                "mean CKA with others": sum(others) / len(others) if others else None,
            }
        )
    return rows


def _spectrum_rows(each: Measured) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, sigma in each.spectra.items():
        energy = sigma.square() / (sigma.square().sum() or 1.0)
        rows.append(
            {
                "maps": name,
                "effective rank": linear.effective_rank(sigma),
                "variance in the first direction": float(energy[0]),
                "directions for 90 % of the variance": int((energy.cumsum(0) < 0.9).sum()) + 1,
            }
        )
    return rows


def _data(each: Measured) -> dict[str, Any]:
    return {
        "encoder": each.subject.source,
        "layers": list(each.layers),
        "mixed": list(each.mixed),
        "tokens": each.tokens,
        "cka": each.cka.tolist(),
        "cosine": each.cosine.tolist(),
        "effective_rank_of_layers": {str(layer): rank for layer, rank in each.ranks.items()},
        "v": {
            name: {"effective_rank": linear.effective_rank(sigma), "singular_values": sigma.tolist()}
            for name, sigma in each.spectra.items()
        },
    }
