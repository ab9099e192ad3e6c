"""Kills a run's processes with SIGKILL, one at a time, and starts the run again by the same command."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psutil
from project import Project

SCRIPTS = {"server": "serve.py", "client": "generate.py", "trainer": "train.py"}
LONGEST = {"snakemake": 9.0, "server": 2.0, "client": 1.0, "trainer": 6.0}  # seconds of its life that a kill may wait
PATIENCE = 1800.0  # seconds, after which it is no longer a matter of busy processors


@dataclass
class Chaos:
    """Kills what it is told to, at moments that follow from the seed."""

    project: Project
    targets: tuple[str, ...]
    seed: int
    killed: list[str] = field(default_factory=list)
    running: subprocess.Popen | None = None
    wounded: bool = False  # whether the run that is running has a reason to fail

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def kill(self, victims: Iterable[str], ready: Callable[[], bool] = lambda: True) -> None:
        """Kill each of `victims` while it lives; a run that ends well before its turn is begun anew.

        ready: not before it is so.
        """
        for victim in victims:
            while not self._killed(victim, ready):
                pass
            self.killed.append(victim)

    def end(self) -> None:
        """Let the run end, which it must by itself now."""
        self._start()
        output, _ = self.running.communicate(timeout=PATIENCE)
        if self.running.returncode != 0:
            assert self.wounded, output
            self.project.run(*self.targets)

    def _killed(self, victim: str, ready: Callable[[], bool]) -> bool:
        """Whether it was alive at its moment, and is no longer."""
        self._start()
        process = self._find(victim)
        if process is None:
            return False
        end = time.monotonic() + self.random.uniform(0, LONGEST[victim])
        while (time.monotonic() < end or not ready()) and _lives(process):
            time.sleep(0.02)
        try:
            if not _lives(process):
                return False
            process.kill()
            process.wait(PATIENCE)
        except psutil.NoSuchProcess:
            return False
        if victim == "snakemake":
            self.running.communicate()
            self.running = None
        self.wounded = True
        return True

    def _start(self) -> None:
        """Have the run running: the same command again, and from nothing where it is complete."""
        if self.running is not None and self.running.poll() is None:
            return
        if self.running is not None:
            output, _ = self.running.communicate()
            if self.running.returncode == 0:
                shutil.rmtree(self.project.run_folder)
            assert self.running.returncode == 0 or self.wounded, output
        self.wounded = False
        self.running = self.project.start("--cores", "2", *self.targets)

    def _find(self, victim: str) -> psutil.Process | None:
        """The victim's process as soon as there is one; None when the run ends first."""
        if victim == "snakemake":
            return psutil.Process(self.running.pid)
        script, end = str(self.project.folder / "scripts" / SCRIPTS[victim]), time.monotonic() + PATIENCE
        while self.running.poll() is None:
            assert time.monotonic() < end, f"after {self.killed} no {victim} came:\n{self.stop()}"
            for process in psutil.process_iter(["cmdline", "status"]):
                line = process.info["cmdline"] or ()
                if script in line[1:2] and process.info["status"] != psutil.STATUS_ZOMBIE:
                    return process
            time.sleep(0.1)
        return None

    def stop(self) -> str:
        """Leave nothing behind. What the run has said."""
        if self.running is None or self.running.poll() is not None:
            return ""
        os.killpg(self.running.pid, signal.SIGKILL)
        return self.running.communicate()[0]


def _lives(process: psutil.Process) -> bool:
    """Not so one that has ended and was not waited for yet, which takes a signal all the same."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
