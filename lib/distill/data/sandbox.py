"""A program that a model wrote, run where it can do little: a process of its own with limits.

No environment, an empty folder, no input; bounded time, memory, file size, number of files and of processes. That
keeps out accidents, loops and forks, not an attacker: it shares the machine's users, disks and network. Run it in
a container where the prompts are not your own.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FAILED = "code_failed"
TIMEOUT = "code_timeout"

# Limits itself, runs the program, and says that it came to its end: one that calls exit() before did not.
LIMITED = """
import os, resource, sys
memory, seconds, done = map(int, sys.argv[1:])
del sys.argv[1:]
for what, most in (
    (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 1 << 20),
    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
):
    resource.setrlimit(what, (most, most))
with open("program.py", encoding="utf-8") as file:
    program = file.read()
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
os.write(done, b"done")
"""


@dataclass(frozen=True)
class Limits:
    """Seconds of the clock and of the processor, and megabytes of memory."""

    seconds: float
    megabytes: int


def run_python(program: str, limits: Limits) -> str | None:
    """None when `program` comes to its end, code_timeout when it takes too long, code_failed for all else."""
    ours, theirs = os.pipe()
    with tempfile.TemporaryDirectory(prefix="distill-code-") as folder:
        Path(folder, "program.py").write_text(program, encoding="utf-8", errors="replace")
        numbers = (limits.megabytes << 20, max(1, round(limits.seconds)), theirs)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", LIMITED, *map(str, numbers)],
            cwd=folder, env={"LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=[theirs],
        )  # fmt: skip
        os.close(theirs)
        try:
            late = process.wait(limits.seconds) in (-signal.SIGXCPU, -signal.SIGKILL)
        except subprocess.TimeoutExpired:
            late = True
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it left behind
        code = process.wait()
    with os.fdopen(ours, "rb") as pipe:
        done = pipe.read(4) == b"done"
    if late:
        return TIMEOUT
    return None if done and code == 0 else FAILED
