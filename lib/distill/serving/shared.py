"""One server for all batch jobs of a node: found by its key, started by the first that asks, detached from it.

Its files lie in a folder of the user's own on this node: `{key}.json` says where it is (mode 0600, for the
token in it), `{key}.alive` is locked as long as the process lives, `{key}.start` by the client that starts it,
`{key}.log` is what it said. The key covers all that decides its answers, so that neither another teacher or
other settings, nor another version of the code, nor another node or SLURM job is taken for it.
"""

import fcntl
import hashlib
import os
import re
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TextIO

from distill.config.generation import ONE_DEVICE, EngineMesh
from distill.errors import DistillError
from distill.files import digest, read_json, write_json

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPT = PACKAGE.parents[1] / "scripts/serve.py"
CODE = (".py", ".c", ".h")
DECIDING = re.compile("JAX_.*|XLA_.*|DISTILL_KERNELS|CC")
"""Environment variables that decide which code answers."""
POLL = 0.05  # seconds
BUSY = 10.0  # seconds that a busy server is waited for before it is left alone
HELD: list[TextIO] = []
STARTED: list[subprocess.Popen] = []  # they outlive this process; a handle that is dropped would complain of that


@dataclass(frozen=True)
class Server:
    """Where a server is."""

    url: str
    token: str
    pid: int


@dataclass(frozen=True)
class Files:
    """The files of one key."""

    info: Path

    @property
    def alive(self) -> Path:
        return self.info.with_suffix(".alive")

    @property
    def start(self) -> Path:
        return self.info.with_suffix(".start")

    @property
    def log(self) -> Path:
        return self.info.with_suffix(".log")

    def lives(self) -> bool:
        """Whether a process holds the lock, whatever it is doing."""
        with suppress(FileNotFoundError), self.alive.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def read(self) -> Server | None:
        """The server that lives, once it takes requests."""
        if not self.lives() or not self.info.exists():
            return None
        with suppress(DistillError, TypeError):  # it left in between
            return Server(**read_json(self.info))
        return None


def folder() -> Path:
    """The user's own folder on this node; one that others could write to is refused."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    own = bool(base) and os.access(base, os.W_OK)
    path = Path(base, "distill") if own else Path(tempfile.gettempdir(), f"distill-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DistillError(f"{path} must be a folder that you alone can open: remove it, or set XDG_RUNTIME_DIR")
    return path


def files_of(
    params: Path,
    slots: int,
    max_length: int,
    mesh: EngineMesh = ONE_DEVICE,
    int8: Sequence[str] = (),
    top: int = 0,
    sampled: int = 0,
) -> Files:
    """The files of the server that answers for a model and engine settings, with the code as it is now."""
    code = hashlib.sha256()
    for file in [SCRIPT, *sorted(file for file in PACKAGE.rglob("*") if file.suffix in CODE)]:
        code.update(str(file.relative_to(PACKAGE.parents[1])).encode() + b"\0" + file.read_bytes())
    key = {
        "teacher": hashlib.sha256((params / "model.json").read_bytes()).hexdigest(),
        "engine": [slots, max_length, mesh.model_dump(), sorted(int8), top, sampled],
        "code": code.hexdigest(),
        "python": sys.executable,
        "jax": {name: value for name, value in os.environ.items() if DECIDING.fullmatch(name)},
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "node": [socket.gethostname(), os.environ.get("SLURM_JOB_ID")],
    }
    return Files(folder() / f"{digest(key)[:16]}.json")


def ensure_server(
    params: Path,
    *,
    slots: int,
    max_length: int,
    idle_seconds: float,
    mesh: EngineMesh = ONE_DEVICE,
    int8: Sequence[str] = (),
    top: int = 0,
    sampled: int = 0,
) -> Server:
    """The shared server; started, and waited for, when there is none. Idle ones with another key leave first.

    top, sampled: logits that it can tell a token, see `generation.engine.Engine`.
    """
    files = files_of(params, slots, max_length, mesh, int8, top, sampled)
    if server := files.read():
        return server
    from filelock import FileLock  # a twentieth of the start of a batch's job, which mostly finds a server

    with FileLock(files.start):
        while files.lives():  # it starts, or it is leaving
            if server := files.read():
                return server
            time.sleep(POLL)
        leave_servers()
        files.info.unlink(missing_ok=True)
        command = [sys.executable, SCRIPT, "--params", params, "--slots", slots, "--max-length", max_length]
        command += ["--idle-seconds", idle_seconds, "--shared", files.info]
        command += [f"--int8-{what}" for what in int8]
        command += ["--top-logprobs", top, "--sampled-logits", sampled]
        command += [part for axis, size in mesh for part in (f"--{axis}-parallelism", size)]
        environment = {name: value for name, value in os.environ.items() if name != "DISTILL_PARENT"}
        with files.log.open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        STARTED.append(process)
        while (server := files.read()) is None:
            if process.poll() is not None:
                raise DistillError(f"the generation server did not start: {last_words(files)} (the whole: {files.log})")
            time.sleep(POLL)
        return server


def last_words(files: Files) -> str:
    """The error in a server's log, or its last line."""
    lines = files.log.read_text(errors="replace").splitlines() if files.log.exists() else []
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if line.strip()] or ["it left no word"])[-1]


def leave_servers() -> None:
    """Ask every shared server of this node to leave, and wait until those that were idle are gone.

    One that stays busy answers for another run: it is left alone.
    """
    for alive in sorted(folder().glob("*.alive")):
        _leave(Files(alive.with_suffix(".json")))


def _leave(files: Files) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + BUSY
    while files.lives():
        if server := files.read():
            asked = urllib.request.Request(f"{server.url}/leave", method="POST")
            asked.add_header("Authorization", f"Bearer {server.token}")
            with suppress(OSError, HTTPException), direct.open(asked, timeout=BUSY):  # busy, or gone already
                pass
        if time.monotonic() > deadline:
            print(f"the generation server of {files.info} is busy with another run: it stays", file=sys.stderr)
            return
        time.sleep(2 * POLL)


@contextmanager
def living(info: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """On the server's side: a token, and what writes the info file once there is a URL.

    The lock is held to the very end of the process: what is gone has given the device back.
    """
    files, token = Files(info), secrets.token_urlsafe(32)
    HELD.append(file := files.alive.open("w"))
    for _ in range(20):  # a client that looks holds it for a moment
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(POLL)
    else:
        raise DistillError(f"another server lives already ({files.alive} is locked)")

    def announce(url: str) -> None:
        os.umask(0o077)
        write_json(info, {"url": url, "token": token, "pid": os.getpid()})

    try:
        yield token, announce
    finally:
        info.unlink(missing_ok=True)
