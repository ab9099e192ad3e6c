"""The loop of every stage: read, step, log, save; what it leaves is a params folder like any model's."""

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from distill import SCHEMA_VERSION, closure
from distill.checkpoints.info import ModelInfo, read_info
from distill.config.results import Evaluation
from distill.config.stages import Stage
from distill.data.loader import Loader, row_length
from distill.data.masking import Examples
from distill.errors import DistillError
from distill.files import write_json
from distill.parallel.mesh import batch_sharding, check_rows, make_mesh
from distill.parallel.processes import in_any, is_first, spread, wait_for_all
from distill.text.chat import Template
from distill.text.compatibility import compare, must_be_open
from distill.training.checkpoints import LOSS, Steps
from distill.training.examples import aligned_examples, evaluation_examples, logits_examples, text_examples
from distill.training.finish import write_params
from distill.training.held_out import make_judge, split
from distill.training.hidden_states import student_of
from distill.training.log import Log
from distill.training.objectives import scheduled
from distill.training.on_policy import Sampler
from distill.training.optimizer import make_optimizer
from distill.training.speed import operations
from distill.training.state import initial_state
from distill.training.step import make_step
from distill.training.teacher import load_teacher
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
    teacher: Path | None = None,
    told: Sequence[Path] = (),
    told_by: Path | None = None,
    evaluation: Evaluation | None = None,
    elsewhere: str | None = None,
) -> None:
    """Train a stage from the params folder `init`, on conversations in the files `data`.

    teacher: params folder of the model that an objective asks for its logits.
    told, told_by: files of completions with stored logits, and the params folder of the teacher whose they are.
    evaluation: what a stage with `held_out: evaluation` is asked for its NLL.
    elsewhere: a folder or a bucket that keeps `folder/steps` too: on a machine that has nothing it goes on from there.
    data: Parquet files of a dataset, and prompts with the answers they came with, as `stage.data` needs them.
    Leaves `folder/params`, `folder/final.json` and `folder/metrics.jsonl`. Interrupted at any step and
    started again, it goes on from its last checkpoint and ends in the same bits.
    """
    if teacher is not None:
        must_be_open({name: stage.objective}, compare(teacher, init))
    length, mapped = row_length(max_length) if stage.packing else None, folder / f"logits-{jax.process_index()}"
    if stage.objective == "topk_logits":
        examples = logits_examples(init, data, told, told_by, stage, name, mapped, max_length)
    elif stage.objective == "aligned_logits":
        examples = aligned_examples(init, data, teacher, stage, template, max_length)
    else:
        examples = text_examples(init, data, stage, template, max_length)
    apart = evaluation_examples(init, evaluation, template) if stage.held_out == "evaluation" else None
    try:
        fit(init, examples, folder, stage, name, length=length, teacher=teacher, apart=apart, elsewhere=elsewhere)
    finally:
        shutil.rmtree(mapped, ignore_errors=True)


def fit(
    init: Path,
    examples: Examples,
    folder: Path,
    stage: Stage,
    name: str,
    *,
    length: int | None = None,
    teacher: Path | None = None,
    apart: Examples | None = None,
    elsewhere: str | None = None,
) -> None:
    """`train`, on examples that are tokenized already.

    length: positions of a row; what the longest needs if None. apart: held out; `stage.held_out` of them if None.
    """
    info, mesh = read_info(init), make_mesh(stage.mesh.sizes)
    _check(info, examples, stage, name, mesh)
    if teacher is not None and examples.aligned is None:
        _check_length("teacher", read_info(teacher), examples, name)
    identity = {
        "init": info.digest,
        "teacher": None if teacher is None else read_info(teacher).digest,
        "examples": examples.digest(),
        **({} if apart is None else {"apart": apart.digest()}),
        "length": length,
        "stage": stage.model_dump(mode="json", exclude=HOW),
        "code": closure.digest(Path(__file__)),
        "jax": jax.__version__,
    }
    counts = {"examples": len(examples), "dropped": dict(examples.dropped), "cut": examples.cut}
    if apart is None:
        examples, apart = split(examples, stage.held_out, name)
    loader = Loader(examples, stage.batch_size, stage.seed, length, packing=stage.packing)
    steps = _steps(loader, stage, name)
    optimizer, sharding = make_optimizer(stage, steps), batch_sharding(mesh)
    with alone(folder), until_told() as told, Steps(folder / "steps", identity, stage.keep, elsewhere) as kept:
        asked = None if teacher is None else load_teacher(teacher, stage, mesh, init)
        start = initial_state(init, stage, optimizer, mesh, None if asked is None else asked.config)
        config, state, where, frozen = start
        first, state = kept.restore(state, where)
        kept.forget_metrics_after(first)
        run, watch = make_step(config, stage, optimizer, mesh, where, frozen, asked), Watch(name, loader, stage.spike)
        sampler = None
        if stage.objective == "on_policy":
            ends = {"eos_ids": info.eos_ids, "real_vocab": info.real_vocab}
            sampler = Sampler(config, stage, loader, mesh, frozen, **ends)
        judged: dict[str, float] = {}
        judge = apart and make_judge(config, stage, apart, loader.length, mesh, where.params, frozen, asked)
        with Log(kept.metrics, name, stage, operations(stage, loader, config, asked), loader, first, steps) as log:
            for step in range(first + 1, steps + 1):
                numbers, read = scheduled(stage, step, steps), lambda part, step=step: loader.batch(step - 1, part)
                if sampler and sampler.chosen(step):
                    numbers |= {"alpha": 1.0}
                    read = partial(sampler.batch, state.params, step)
                batch = spread(read, stage.batch_size, sharding)
                state, metrics = run(state, batch, numbers)
                watch.add(step, metrics)
                # Read once: a signal that comes later finds the next step, or the end.
                stopping = in_any(bool(told)) and step < steps
                saving = stopping or (step % stage.checkpoint_every == 0 and step < steps)
                judging = judge and not stopping and (saving or step % stage.held_out_every == 0 or step == steps)
                logging = step % stage.log_every == 0 or step in (1, steps)
                if saving or logging or judging:
                    watch.look()
                judged = judge(state.params, numbers) if judging else {}
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
        digest = write_params(init, folder, config, student_of(state.params), frozen)
        if is_first():
            shutil.copyfile(kept.metrics, folder / "metrics.jsonl")
            final = {"schema": SCHEMA_VERSION, "stage": name, "step": chosen, "digest": digest, **counts}
            learned = {"tokens": loader.learned_before(steps), "seconds": seconds}
            write_json(folder / "final.json", final | learned | ({LOSS: judged[LOSS]} if judged else {}))
            kept.remove()
        wait_for_all("the run is over")


def _check(info: ModelInfo, examples: Examples, stage: Stage, name: str, mesh: Mesh) -> None:
    """What would fail later, or worse, be learned wrong."""
    for setting in ("micro_batch_size", "batch_size"):
        if size := getattr(stage, setting):
            check_rows(mesh, size, f"stage {name}: {setting}")
    _check_length("student", info, examples, name)
    if (highest := int(examples.ids.max())) >= info.architecture.vocab_size:
        raise DistillError(
            f"stage {name}: the examples have token {highest}, the student knows {info.architecture.vocab_size}: "
            "its tokenizer and its weights do not belong together"
        )


def _check_length(side: str, info: ModelInfo, examples: Examples, name: str) -> None:
    longest, context = int(examples.lengths.max()), info.architecture.max_positions
    if longest > context:
        raise DistillError(
            f"stage {name}: an example has {longest} tokens, the {side}'s context is {context}: lower max_length"
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
