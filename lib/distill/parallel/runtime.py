"""How a process starts with JAX: the compilation cache, so that a second process compiles nothing."""

import os
import platform
from pathlib import Path

from distill.files import digest


def start() -> None:
    """Turn on the persistent compilation cache.

    `JAX_COMPILATION_CACHE_DIR` says where; by default it is in the user's cache folder, apart for each kind
    of processor, since compiled code of one may not run on another.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "distill" / f"jax-{_machine()}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _machine() -> str:
    """Eight hex digits of the processor's kind."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        lines = sorted({line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        lines = [platform.processor()]
    return digest([platform.machine(), *lines])[:8]
