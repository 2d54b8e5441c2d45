"""The cheapest one-to-one matching of rows to columns (the Hungarian method). Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence


def cheapest(cost: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs (row, column), min(rows, columns) of them, whose costs add up to the least; costs must be finite.

    Shortest augmenting paths with potentials, O(rows^2 columns).
    """
    if not cost or not cost[0]:
        return []
    if len(cost) > len(cost[0]):
        return sorted((row, column) for column, row in cheapest(list(zip(*cost, strict=True))))
    rows, columns = len(cost), len(cost[0])
    # Index 0 stands for "nothing"; owner[j] is the row that has column j.
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, before, seen = [math.inf] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            seen[column] = True
            here, step, following = owner[column], math.inf, 0
            for other in range(1, columns + 1):
                if seen[other]:
                    continue
                reduced = cost[here - 1][other - 1] - row_price[here] - column_price[other]
                if reduced < least[other]:
                    least[other], before[other] = reduced, column
                if least[other] < step:
                    step, following = least[other], other
            for other in range(columns + 1):
                if seen[other]:
                    row_price[owner[other]] += step
                    column_price[other] -= step
                else:
                    least[other] -= step
            column = following
        while column:
            owner[column], column = owner[before[column]], before[column]
    return sorted((owner[column] - 1, column - 1) for column in range(1, columns + 1) if owner[column])
