"""Linear probes for boxes and points: what one layer's frozen tokens say of where and what, with closed forms.

With x_n the token of patch n (at mean 0 and variance 1, and a 1 after its last channel), c_n the patch's centre:

    where   x_n W ≈ (c_x - x0, c_y - y0, x1 - c_x, y1 - c_y) of the box of the object that the patch is on
    what    x_n U ≈ 1 for each label of that object, 0 for all others; patches on no object have 0 everywhere

both by ridge regression over all patches of all training pictures (for *where*, those on objects). Held out,

    on it   the box from a patch on the object, mean over its patches: is the extent in the token?
    found   the box from the patch where the scores of the asked object's labels sum highest: the whole task,
            for objects whose labels no other object of the picture has

Shapes: B pictures, N patches, D width, K labels, O objects. Distances in sides of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionkit.analysis import linear
from fusionkit.analysis.annotated import Scene

ON, FOUND = "on", "found"


def box_targets(scene: Scene, centres_N2: Tensor) -> Tensor:
    """Distances from each patch's centre to the edges of its object's box: [N, 4]; of no meaning off objects."""
    boxes_N4 = scene.boxes[scene.owner.clamp(min=0)]
    return torch.cat([centres_N2 - boxes_N4[:, :2], boxes_N4[:, 2:] - centres_N2], dim=-1)


def label_targets(scene: Scene, labels: int) -> Tensor:
    """1 for each label of the object a patch is on, [N, K]."""
    of_objects_OK = torch.zeros(len(scene.boxes), labels, dtype=torch.float64)
    for number, columns in enumerate(scene.columns):
        of_objects_OK[number, list(columns)] = 1
    return of_objects_OK[scene.owner.clamp(min=0)] * (scene.owner >= 0)[:, None]


def equations(x_BND: Tensor, scenes: Sequence[Scene], centres_N2: Tensor, labels: int) -> dict[str, Tensor]:
    """What a batch adds to the normal equations of one layer."""
    x_ND = linear.with_one(linear.normalised(x_BND).cpu()).flatten(0, 1)
    on_N = torch.cat([scene.owner for scene in scenes]) >= 0
    boxes_N4 = torch.cat([box_targets(scene, centres_N2) for scene in scenes]).float()
    labels_NK = torch.cat([label_targets(scene, labels) for scene in scenes]).float()
    x_on_ND = x_ND[on_N]
    found = {"where gram": x_on_ND.T @ x_on_ND, "where products": x_on_ND.T @ boxes_N4[on_N]}
    if labels:
        found |= {"what gram": x_ND.T @ x_ND, "what products": x_ND.T @ labels_NK}
    return found


@dataclass(frozen=True, slots=True)
class Probe:
    """The maps of one layer; `what` is None without labels."""

    where: Tensor
    what: Tensor | None

    @classmethod
    def solve(cls, sums: dict[str, Tensor], strength: float) -> Probe:
        """From the normal equations; raises nothing: the ridge keeps them solvable."""
        where = linear.ridge(sums["where gram"], sums["where products"], strength)
        what = linear.ridge(sums["what gram"], sums["what products"], strength) if "what gram" in sums else None
        return cls(where, what)

    def measure(self, x_ND: Tensor, scene: Scene, centres_N2: Tensor) -> dict[str, list[float]]:
        """Of one picture: `on` and, where labels tell objects apart, `found`, each a mean over objects of
        [IoU >= 0.5, IoU, distance of the centres]."""
        x_ND = linear.with_one(linear.normalised(x_ND).cpu()).double()
        boxes_N4 = edges(x_ND @ self.where, centres_N2)
        results = {ON: on_objects(boxes_N4, scene)}
        asked = [number for number, unique in enumerate(scene.unique) if unique]
        if self.what is not None and asked:
            scores_NK = x_ND @ self.what
            chosen = [int(scores_NK[:, list(scene.columns[number])].sum(-1).argmax()) for number in asked]
            results[FOUND] = [float(value) for value in compare(boxes_N4[chosen], scene.boxes[asked]).mean(0)]
        return results


def constant_boxes(sums: dict[str, Tensor], centres_N2: Tensor) -> Tensor:
    """What a probe that sees no token says: the mean distances to the edges, from every patch: [N, 4]."""
    mean_4 = sums["where products"][-1] / sums["where gram"][-1, -1]
    return edges(mean_4.expand(len(centres_N2), 4), centres_N2)


def edges(distances_N4: Tensor, centres_N2: Tensor) -> Tensor:
    """(x0, y0, x1, y1) from distances to the edges."""
    return torch.cat([centres_N2 - distances_N4[:, :2], centres_N2 + distances_N4[:, 2:]], dim=-1)


def on_objects(boxes_N4: Tensor, scene: Scene) -> list[float]:
    """Mean over objects of the mean over their patches."""
    per_patch_N3 = compare(boxes_N4, scene.boxes[scene.owner.clamp(min=0)])
    rows = [
        per_patch_N3[scene.owner == number].mean(0)
        for number in range(len(scene.boxes))
        if (scene.owner == number).any()
    ]
    return [float(value) for value in torch.stack(rows).mean(0)]


def compare(boxes_N4: Tensor, truth_N4: Tensor) -> Tensor:
    """[IoU >= 0.5, IoU, distance between centres] of each pair. A box turned inside out has IoU 0."""
    low, high = torch.maximum(boxes_N4[:, :2], truth_N4[:, :2]), torch.minimum(boxes_N4[:, 2:], truth_N4[:, 2:])
    shared_N = (high - low).clamp(min=0).prod(-1)
    area_N, truth_area_N = ((box[:, 2:] - box[:, :2]).clamp(min=0).prod(-1) for box in (boxes_N4, truth_N4))
    iou_N = shared_N / (area_N + truth_area_N - shared_N)
    iou_N = torch.where((boxes_N4[:, 2:] > boxes_N4[:, :2]).all(-1), iou_N, 0.0)
    middles_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:] - truth_N4[:, :2] - truth_N4[:, 2:]) / 2
    return torch.stack([(iou_N >= 0.5).double(), iou_N, middles_N2.square().sum(-1).sqrt()], dim=-1)
