"""Packing: several examples share a row, so that hardly a position of a batch is padding.

Best fit, longest first: an example goes into the row with the least room that still holds it. Which lengths share
a row then depends on the lengths alone, so every epoch has the same number of rows; which of the examples of one
length takes which place, and in which order the rows come, changes with seed and epoch.
"""

from collections.abc import Sequence

import numpy as np


def best_fit(sizes: Sequence[int], capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most `capacity` for `sizes` that fall: row r holds items `items[starts[r]:starts[r + 1]]`.

    sizes 6 5 3 2, capacity 8 → rows (6, 2) and (5, 3): items 0 3 1 2, starts 0 2 4
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that they have left
    rooms = 0  # bit r: there is an open row with room r
    for item, size in enumerate(sizes):
        if not 0 < size <= capacity:
            raise ValueError(f"an example of {size} tokens does not fit into a row of {capacity}")
        if fitting := rooms >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        if left := room - size:
            open_rows[left].append(row)
            rooms |= 1 << left
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.concatenate([*map(np.asarray, rows), np.zeros(0, np.int64)]).astype(np.int64), starts
