"""The kernels beside this file: compiled for the processor at hand when they are first needed, and called by XLA.

They take a C compiler, `$CC` or `cc`. Where there is none, and for all that they are not made for, XLA's own code
stands in; `DISTILL_KERNELS=off` asks for that. Which of the two it is reaches the bits of what is computed.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock

import click
import jax

from distill.parallel.runtime import cache_folder, machine

SOURCES = ("kernel.h", "products.c", "attention.c")
ARCHITECTURE = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
FLAGS = ("-O3", ARCHITECTURE, "-shared", "-fPIC", "-std=gnu11")
_one_at_a_time = Lock()


def kernels() -> ctypes.CDLL | None:
    """The compiled kernels, their calls known to JAX; None where XLA's own code stands in."""
    with _one_at_a_time:
        return _loaded()


@cache
def _loaded() -> ctypes.CDLL | None:
    if os.environ.get("DISTILL_KERNELS") == "off" or jax.default_backend() != "cpu":
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        if shutil.which(compiler[0]) is None:
            raise OSError(f"there is no C compiler {compiler[0]}: install gcc or clang, or name one by CC")
        library = _opened(compiler)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()[-500:]
        click.echo(f"kernels in C: {why}\nXLA's own code stands in, at about half the speed", err=True)
        return None
    for name in ("distill_products", "distill_attention"):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


def _opened(compiler: list[str]) -> ctypes.CDLL:
    """From the user's cache folder; where there is none that can be written and run from, compiled for this process."""
    try:
        return ctypes.CDLL(str(_compiled(compiler, cache_folder())))
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_compiled(compiler, Path(folder))))


def _compiled(compiler: list[str], kept: Path) -> Path:
    """The shared library in folder `kept`; named by compiler, processor and source, so that none is out of date."""
    folder = Path(__file__).resolve().parent
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    total = hashlib.sha256(f"{machine()}\0{compiler}\0{version}\0{FLAGS}\0{jax.__version__}\0".encode())
    for name in SOURCES:
        total.update((folder / name).read_bytes())
    made = kept / f"kernels-{total.hexdigest()[:16]}.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            fresh = Path(scratch) / made.name
            sources = [str(folder / name) for name in SOURCES if name.endswith(".c")]
            command = [*compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", "-o", str(fresh), *sources, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
            fresh.replace(made)
    return made
