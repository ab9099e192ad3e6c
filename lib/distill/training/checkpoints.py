"""Rolling checkpoints of a run, in an undeclared folder beside its target.

steps/
  identity.json     what the run was started with; another start clears the folder
  metrics.jsonl     a row for each logged step, each step once
  {step}/           Orbax checkpoints: the newest ones, and the best by held-out loss
"""

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from distill.checkpoints.store import flat
from distill.errors import DistillError, full_disk_as_oserror
from distill.files import read_json, read_jsonl, write_json, write_jsonl
from distill.kept import Kept
from distill.parallel.processes import is_first, wait_for_all
from distill.training.state import State

LOSS = "held_out_loss"


class Steps:
    """The folder of a run. `identity` is all that decides its result: with another one, it starts over.

    elsewhere: a folder or a bucket that has what is whole of it too, for a machine that has nothing.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int, elsewhere: str | None = None):
        self.folder, self.metrics = folder, folder / "metrics.jsonl"
        self.kept = Kept(folder, elsewhere, whole) if elsewhere and is_first() else None
        if is_first():
            if self.kept:
                self.kept.fetch()
            if folder.exists() and (odd := self._apart(identity)):
                print(f"{folder} is of another run ({', '.join(odd)} was another): starting over", file=sys.stderr)
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "identity.json", identity)
        wait_for_all("the folder of the steps is there")
        loss = lambda found: found[LOSS]  # noqa: E731
        best = BestN(get_metric_fn=loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=loss,  # or the manager does not store the metrics
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            enable_async_checkpointing=True,
        )
        handler = ocp.StandardCheckpointHandler()  # or the manager tells no shapes until it has restored something
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handler)
        if self.kept:
            self.kept.start()

    def restore(self, state: State, where: State) -> tuple[int, State]:
        """The newest step that can be read and its state, or 0 and the state given.

        One of another architecture is not damaged: it is left alone, and a `DistillError` names both.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                self._must_fit(step, state)
                return step, self.read(step, state, where)
            except (ValueError, KeyError, FileNotFoundError) as error:  # what a cut file makes Orbax raise
                reason = " ".join(str(error).split())[:200]
                print(f"step {step} cannot be read ({reason}): going back to the one before", file=sys.stderr)
                self.manager.delete(step)
        return 0, state

    def read(self, step: int, state: State, where: State) -> State:
        """The state of a step, on the mesh that `where` names: it may have been saved on another one."""
        shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, where)
        return State(**self.manager.restore(step, args=ocp.args.StandardRestore(shapes._asdict())))

    def best(self) -> tuple[int, float] | None:
        """The saved step with the least held-out loss, and that loss."""
        self.finish()
        losses = [(found[LOSS], step) for step in self.manager.all_steps() if (found := self.manager.metrics(step))]
        return min(losses)[::-1] if losses else None

    def save(self, step: int, state: State, judged: dict[str, float]) -> None:
        """Save in the background; the state may be donated at once. Forced, for the manager may skip a step else."""
        metrics = {LOSS: judged[LOSS]} if judged else None
        with full_disk_as_oserror(self.folder):
            self.manager.save(step, args=ocp.args.StandardSave(state._asdict()), metrics=metrics, force=True)

    def forget_metrics_after(self, step: int) -> None:
        """Drop rows of steps that will be done again, and one that was not written to its end."""
        if is_first() and self.metrics.exists():
            write_jsonl(self.metrics, [row for row in read_jsonl(self.metrics, torn=True) if row["step"] <= step])

    def finish(self) -> None:
        """Wait for what is being saved."""
        with full_disk_as_oserror(self.folder):
            self.manager.wait_until_finished()

    def remove(self) -> None:
        """The run is over: nothing will go on from here."""
        shutil.rmtree(self.folder)
        if self.kept:
            self.kept.remove()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is being saved is kept, whatever ended the run; its own failure does not hide the run's."""
        with suppress(Exception) if kind else full_disk_as_oserror(self.folder):
            self.manager.wait_until_finished()
            self.manager.close()
        if self.kept:
            self.kept.close()

    def _must_fit(self, step: int, state: State) -> None:
        if (saved := self.manager.item_metadata(step)) is None:
            return  # what is damaged is found when it is read
        theirs = {path: tuple(leaf.shape) for path, leaf in flat(saved["params"]).items()}
        ours = {path: leaf.shape for path, leaf in flat(state.params).items()}
        if odd := next((path for path in sorted({*theirs, *ours}) if theirs.get(path) != ours.get(path)), None):
            raise DistillError(
                f"step {step} in {self.folder} is of another architecture: {odd} is {theirs.get(odd, 'not')} there and "
                f"{ours.get(odd, 'not')} in the model that the stage starts from: delete the folder to start over"
            )

    def _apart(self, identity: dict[str, Any]) -> list[str]:
        """By what the run that left the folder was another one."""
        path = self.folder / "identity.json"
        known = read_json(path) if path.exists() else {}
        return [name for name in {**known, **identity} if known.get(name) != identity.get(name)]


def whole(folder: Path) -> list[Path]:
    """What of a folder of steps is worth keeping: all of it but checkpoints that are being written."""
    parts = sorted(part for part in folder.iterdir() if part.name.isdigit() or part.is_file())
    return [
        file for part in parts for file in ([part] if part.is_file() else sorted(part.rglob("*"))) if file.is_file()
    ]
