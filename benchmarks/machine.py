"""What a benchmark says of the machine and the software that gave its figures."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path


def footer(versions: Mapping[str, str]) -> str:
    """Processor, system, load and versions, in two lines."""
    told = ", ".join(f"{package} {number}" for package, number in versions.items())
    machine = f"{os.cpu_count()} × {_processor()}, {platform.platform()}, load {os.getloadavg()[1]:.1f}"
    return f"{machine}\nPython {platform.python_version()}, {told}"


def installed(*packages: str) -> dict[str, str]:
    """Packages of this environment and their versions."""
    return {package: version(package) for package in packages}


def _processor() -> str:
    """Its name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
