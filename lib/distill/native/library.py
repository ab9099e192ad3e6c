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
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        click.echo(f"no C compiler ({compiler[0]}): products are XLA's own, which is slower", err=True)
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        click.echo(f"the kernels in C were not compiled, XLA's own code stands in: {why.strip()[-500:]}", err=True)
        return None
    for name in ("distill_products", "distill_attention"):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


def _compiled(compiler: list[str]) -> Path:
    """The shared library; of one name for one compiler, processor and source, so that none is ever out of date."""
    folder = Path(__file__).resolve().parent
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    total = hashlib.sha256(f"{machine()}\0{compiler}\0{version}\0{FLAGS}\0{jax.__version__}\0".encode())
    for name in SOURCES:
        total.update((folder / name).read_bytes())
    made = cache_folder() / f"kernels-{total.hexdigest()[:16]}.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
            fresh = Path(scratch) / made.name
            sources = [str(folder / name) for name in SOURCES if name.endswith(".c")]
            command = [*compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", "-o", str(fresh), *sources, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
            fresh.replace(made)
    return made
