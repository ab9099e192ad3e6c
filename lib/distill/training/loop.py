"""The loop of every stage: read, step, log, save; what it leaves is a params folder like any model's."""

import math
import shutil
from pathlib import Path

import jax
from jax.sharding import Mesh

from distill import SCHEMA_VERSION, closure
from distill.checkpoints.info import ModelInfo, read_info
from distill.config import Stage
from distill.data.conversations import training_conversations
from distill.data.loader import Loader, row_length
from distill.data.masking import Examples, joined, training_examples
from distill.errors import DistillError
from distill.files import write_json
from distill.parallel.mesh import batch_sharding, check_rows, make_mesh
from distill.parallel.processes import in_any, is_first, spread, wait_for_all
from distill.text.chat import Template
from distill.text.tokenizer import load_tokenizer
from distill.training.checkpoints import LOSS, Steps
from distill.training.finish import write_params
from distill.training.held_out import make_judge, split
from distill.training.log import Log
from distill.training.optimizer import make_optimizer
from distill.training.state import initial_state
from distill.training.step import make_step
from distill.training.turn import alone, until_told
from distill.training.watch import Watch

HOW = {
    "checkpoint_every", "log_every", "held_out_every", "keep", "spike", "tensorboard", "mesh", "micro_batch_size",
    "remat",
}  # fmt: skip
"""Settings that decide when a run writes and on what it computes, not what: a run goes on with others."""


def train(
    init: Path,
    data: list[Path],
    folder: Path,
    stage: Stage,
    name: str,
    *,
    template: Template,
    max_length: int,
) -> None:
    """Train a stage from the params folder `init`, on conversations in the files `data`.

    data: Parquet files of a dataset, and prompts with the answers they came with, as `stage.data` needs them.
    Leaves `folder/params`, `folder/final.json` and `folder/metrics.jsonl`. Interrupted at any step and
    started again, it goes on from its last checkpoint and ends in the same bits.
    """
    tokenizer = load_tokenizer(init / "tokenizer")
    how = {"loss_on": stage.loss_on, "overlong": stage.overlong}
    sources = []
    for part in stage.data:
        found = training_conversations(data, part)
        sources.append(training_examples(found, tokenizer, template, max_length, name=part.source, **how))
    examples = joined(sources, [part.weight for part in stage.data])
    fit(init, examples, folder, stage, name, length=row_length(max_length) if stage.packing else None)


def fit(init: Path, examples: Examples, folder: Path, stage: Stage, name: str, *, length: int | None = None) -> None:
    """`train`, on examples that are tokenized already. length: positions of a row; what the longest needs if None."""
    info, mesh = read_info(init), make_mesh(stage.mesh.sizes)
    _check(info, examples, stage, name, mesh)
    identity = {
        "init": info.digest,
        "examples": examples.digest(),
        "length": length,
        "stage": stage.model_dump(mode="json", exclude=HOW),
        "code": closure.digest(Path(__file__)),
        "jax": jax.__version__,
    }
    counts = {"examples": len(examples), "dropped": dict(examples.dropped), "cut": examples.cut}
    examples, apart = split(examples, stage.held_out, name)
    loader = Loader(examples, stage.batch_size, stage.seed, length, packing=stage.packing)
    steps = _steps(loader, stage, name)
    optimizer, sharding = make_optimizer(stage, steps), batch_sharding(mesh)
    with alone(folder), until_told() as told, Steps(folder / "steps", identity, stage.keep) as kept:
        config, state, where, frozen = initial_state(init, stage, optimizer, mesh)
        first, state = kept.restore(state, where)
        kept.forget_metrics_after(first)
        run, watch = make_step(config, stage, optimizer, mesh, where, frozen), Watch(name, loader, stage.spike)
        judged: dict[str, float] = {}
        judge = apart and make_judge(config, stage, apart, loader.length, mesh, where.params, frozen)
        with Log(kept.metrics, name, stage, config, loader, first, steps) as log:
            for step in range(first + 1, steps + 1):
                batch = spread(lambda part, step=step: loader.batch(step - 1, part), stage.batch_size, sharding)
                state, metrics = run(state, batch)
                watch.add(step, metrics)
                # Read once: a signal that comes later finds the next step, or the end.
                stopping = in_any(bool(told)) and step < steps
                saving = stopping or (step % stage.checkpoint_every == 0 and step < steps)
                judging = judge and not stopping and (saving or step % stage.held_out_every == 0 or step == steps)
                logging = step % stage.log_every == 0 or step in (1, steps)
                if saving or logging or judging:
                    watch.look()
                judged = judge(state.params) if judging else {}
                if logging or judging:
                    log.write(step, metrics, judged)
                log.bar.update()
                if saving:
                    kept.save(step, state, judged)
                if stopping:
                    kept.finish()
                    raise DistillError(f"stage {name} was told to stop and saved step {step}: run again to go on")
            seconds = round(log.seconds, 3)
        chosen, best = steps, kept.best() if judge else None
        if stage.select == "best" and best and best[1] < judged.get(LOSS, math.inf):
            chosen, judged = best[0], {LOSS: best[1]}
            state = kept.read(chosen, state, where)
        kept.finish()
        digest = write_params(init, folder, config, state.params, frozen)
        if is_first():
            shutil.copyfile(kept.metrics, folder / "metrics.jsonl")
            final = {"schema": SCHEMA_VERSION, "stage": name, "step": chosen, "digest": digest, **counts}
            learned = {"tokens": loader.learned_before(steps), "seconds": seconds}
            write_json(folder / "final.json", final | learned | ({LOSS: judged[LOSS]} if judged else {}))
            shutil.rmtree(kept.folder)
        wait_for_all("the run is over")


def _check(info: ModelInfo, examples: Examples, stage: Stage, name: str, mesh: Mesh) -> None:
    """What would fail later, or worse, be learned wrong."""
    for setting in ("micro_batch_size", "batch_size"):
        if size := getattr(stage, setting):
            check_rows(mesh, size, f"stage {name}: {setting}")
    longest, context = int(examples.lengths.max()), info.architecture.max_positions
    if longest > context:
        raise DistillError(
            f"stage {name}: an example has {longest} tokens, the student's context is {context}: lower max_length"
        )
    if (highest := int(examples.ids.max())) >= info.architecture.vocab_size:
        raise DistillError(
            f"stage {name}: the examples have token {highest}, the student knows {info.architecture.vocab_size}: "
            "its tokenizer and its weights do not belong together"
        )


def _steps(loader: Loader, stage: Stage, name: str) -> int:
    """How many steps the run has."""
    rows = loader.rows.per_epoch
    if stage.batch_size > rows:
        what = "packed rows" if stage.packing else "examples"
        raise DistillError(
            f"stage {name}: batch_size is {stage.batch_size}, its data makes {rows} {what}: lower it, "
            "or give the stage more data"
        )
    steps = stage.steps or math.ceil(stage.epochs * loader.steps_per_epoch)
    if stage.warmup_steps >= steps:
        raise DistillError(f"stage {name}: warmup_steps is {stage.warmup_steps}, the run has {steps} steps: lower it")
    return steps
