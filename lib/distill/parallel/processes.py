"""Several processes that train as one (`jax.distributed`): what one of them does alone, and what all must agree on.

With one process, all of it is free.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Go on when every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def in_any(flag: bool) -> bool:
    """Whether it is so in one of the processes; all get the same answer."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray([flag])).any())


def on_host(array: jax.Array) -> np.ndarray:
    """All of an array, in every process, wherever its parts are."""
    if jax.process_count() == 1 or array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def spread(read: Callable[[slice], dict[str, np.ndarray]], rows: int, sharding: Sharding) -> dict[str, Any]:
    """A batch over the devices of all processes: each process reads the rows that its own devices hold."""
    if jax.process_count() == 1:
        return read(slice(0, rows))
    here = [index[0].indices(rows) for index in sharding.addressable_devices_indices_map((rows,)).values()]
    first, last = min(start for start, _, _ in here), max(stop for _, stop, _ in here)

    def place(array: np.ndarray) -> jax.Array:
        def cut(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return array[start - first : stop - first]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, cut)

    return {name: place(array) for name, array in read(slice(first, last)).items()}
