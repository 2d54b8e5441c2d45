"""How sure a score is: intervals by resampling pictures, and a bound where resampling says nothing.

Answers about one picture are not independent, so whole pictures are drawn, with replacement. numpy is imported inside
the functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
_AT_ONCE = 2_000_000
"""Numbers drawn at a time, so that memory does not grow with the data."""


class Group(NamedTuple):
    """The answers about one picture: the sum of their weighted scores, and of their weights."""

    score: float
    weight: float


def bootstrap(groups: Mapping[str, Group]) -> tuple[float, float]:
    """The 95 % interval of a weighted mean: percentiles of its value in `RESAMPLES` draws of as many groups.

    The draws are the same on every run and do not depend on the order of the groups. Scores that are all alike have no
    spread to draw from: see `alike`.
    """
    import numpy as np

    scores, weights = _columns([groups[name] for name in sorted(groups)])
    if np.ptp(scores / weights) == 0:
        return alike(float(scores[0] / weights[0]), len(scores), least=0.0)
    means = np.concatenate([scores[draw].sum(1) / weights[draw].sum(1) for draw in _draws(len(scores))])
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_difference(pairs: Sequence[tuple[Group, Group]]) -> tuple[float, float]:
    """The 95 % interval of first minus second, when both answered the same questions: each draw takes both."""
    import numpy as np

    one, weights = _columns([pair[0] for pair in pairs])
    other, _ = _columns([pair[1] for pair in pairs])
    if np.ptp((one - other) / weights) == 0:
        return alike(float((one[0] - other[0]) / weights[0]), len(pairs), least=-1.0)
    gaps = [(one[draw] - other[draw]).sum(1) / weights[draw].sum(1) for draw in _draws(len(pairs))]
    low, high = np.percentile(np.concatenate(gaps), (2.5, 97.5))
    return float(low), float(high)


def alike(value: float, count: int, least: float) -> tuple[float, float]:
    """The interval of a mean when all of `count` groups had the same value, between `least` and 1.

    What was never seen in `count` trials may still be a share of Wilson's upper end for none of them; that share may
    have any value. For a score of 0 or 1 this is Wilson's interval.
    """
    unseen = wilson(0.0, count)[1]
    return value - unseen * (value - least), value + unseen * (1 - value)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share seen in `count` trials (at least one)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _columns(groups: Sequence[Group]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import numpy as np

    table = np.array(groups, np.float64)
    return table[:, 0], table[:, 1]


def _draws(count: int) -> Iterator[NDArray[np.int64]]:
    """Rows of `count` numbers below `count`, `RESAMPLES` of them in pieces."""
    import numpy as np

    random = np.random.default_rng(0)
    step = max(1, _AT_ONCE // count)
    for start in range(0, RESAMPLES, step):
        yield random.integers(0, count, (min(step, RESAMPLES - start), count))
