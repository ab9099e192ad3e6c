"""How a process starts with JAX: the compilation cache, and the other processes of its run."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from distill.errors import DistillError
from distill.files import digest

PROCESSES = ("DISTILL_COORDINATOR", "DISTILL_PROCESSES", "DISTILL_PROCESS")


def start() -> None:
    """Turn on the persistent compilation cache.

    `JAX_COMPILATION_CACHE_DIR` says where; by default it is in the user's cache folder, apart for each kind
    of processor, since compiled code of one may not run on another.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / f"jax-{machine()}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path:
    """Where compiled code is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"


def simulate(devices: int) -> None:
    """Take the CPU for as many devices, to compile for a mesh that is not here; before anything is computed."""
    import jax

    flag = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    jax.config.update("jax_platforms", "cpu")


def join() -> None:
    """Join the other processes of a run that has several, before anything is computed.

    Under `srun` with more than one task SLURM says who they are; else the environment does:
    DISTILL_COORDINATOR (host:port of the first), DISTILL_PROCESSES (how many) and DISTILL_PROCESS (which, from 0).
    """
    import jax

    given = [os.environ.get(name) for name in PROCESSES]
    if any(given):
        if not all(given) or not (given[1].isdecimal() and given[2].isdecimal()):
            found = ", ".join(f"{name}={value or ''}" for name, value in zip(PROCESSES, given, strict=True))
            raise DistillError(f"{found}: give all three, such as 10.0.0.1:1234, 4 and 0, or none of them")
        jax.distributed.initialize(given[0], int(given[1]), int(given[2]))
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.distributed.initialize(local_device_ids=_share())


def _share() -> list[int] | None:
    """Which of its node's accelerators a task of SLURM's has. By itself JAX takes one for each task, and no more."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES")
    if not visible:
        return None
    count = len(visible.split(","))
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"]) // int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if count < tasks:  # SLURM has bound the task to its own
        return list(range(count))
    share = count // tasks
    first = int(os.environ["SLURM_LOCALID"]) * share
    return list(range(first, first + share))


def machine() -> str:
    """Eight hex digits of the processor's kind."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        lines = sorted({line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        lines = [platform.processor()]
    return digest([platform.machine(), *lines])[:8]


def give_back() -> None:
    """Hand freed memory back to the system: glibc keeps the many pieces that weights were read in, a second copy."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
