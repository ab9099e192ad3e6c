"""Rolling checkpoints of a run, in an undeclared folder beside its target.

steps/
  identity.json     what the run was started with; another start clears the folder
  metrics.jsonl     a row for each logged step, each step once
  {step}/           Orbax checkpoints, the newest two
"""

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from distill.errors import full_disk_as_oserror
from distill.files import read_json, read_jsonl, write_json, write_jsonl
from distill.training.state import State

KEPT = 2


class Steps:
    """The folder of a run. `identity` is all that decides its bits: with another one, it starts over."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.metrics = folder, folder / "metrics.jsonl"
        if folder.exists() and not self._belongs_to(identity):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "identity.json", identity)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def restore(self, state: State, where: State) -> tuple[int, State]:
        """The newest step that can be read and its state, or 0 and the state given."""
        for step in sorted(self.manager.all_steps(), reverse=True):
            shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, where)
            try:
                restored = self.manager.restore(step, args=ocp.args.StandardRestore(shapes._asdict()))
            except (ValueError, KeyError, FileNotFoundError) as error:  # what a cut file makes Orbax raise
                print(f"step {step} cannot be read ({error}): going back to the one before", file=sys.stderr)
                self.manager.delete(step)
                continue
            return step, State(**restored)
        return 0, state

    def save(self, step: int, state: State) -> None:
        """Save in the background; the state may be donated at once. Forced, for the manager may skip a step else."""
        with full_disk_as_oserror(self.folder):
            self.manager.save(step, args=ocp.args.StandardSave(state._asdict()), force=True)

    def forget_metrics_after(self, step: int) -> None:
        """Drop rows of steps that will be done again."""
        if self.metrics.exists():
            write_jsonl(self.metrics, [row for row in read_jsonl(self.metrics) if row["step"] <= step])

    def finish(self) -> None:
        """Wait for what is being saved."""
        with full_disk_as_oserror(self.folder):
            self.manager.wait_until_finished()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is being saved is kept, whatever ended the run; its own failure does not hide the run's."""
        with suppress(Exception) if kind else full_disk_as_oserror(self.folder):
            self.manager.wait_until_finished()
            self.manager.close()

    def _belongs_to(self, identity: dict[str, Any]) -> bool:
        path = self.folder / "identity.json"
        return path.exists() and read_json(path) == identity
