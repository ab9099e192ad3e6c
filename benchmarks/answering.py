"""The worker's side of a side-by-side benchmark: a line comes on stdin, an answer in JSON goes out.

Imported by environments that have a peer and nothing of ours: the standard library only.
"""

import json
import os
import resource
import time
from collections.abc import Callable

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer


def tell(**values: object) -> None:
    """Answer, with the peak of the process's resident memory (GB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({**values, "peak": peak}), file=answers, flush=True)


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Seconds on the clock (wall) and of all cores (cpu); work() gives the tokens."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": tokens}
