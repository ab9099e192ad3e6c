"""The loop of every stage: read, step, log, save; what it leaves is a params folder like any model's."""

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from distill import SCHEMA_VERSION, closure
from distill.checkpoints.info import read_info, write_info
from distill.checkpoints.store import copy_tokenizer, flat, nest, save_weights, tree_digest
from distill.config import Stage
from distill.data.conversations import training_conversations
from distill.data.loader import Loader
from distill.data.masking import Examples, training_examples
from distill.errors import DistillError
from distill.files import replacing, write_json
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.parallel.mesh import BATCH_AXES, make_mesh
from distill.text.chat import Template
from distill.text.tokenizer import load_tokenizer
from distill.training.checkpoints import Steps
from distill.training.optimizer import learning_rate, make_optimizer
from distill.training.state import State, initial_state
from distill.training.step import make_step

SCHEDULING = {"checkpoint_every", "log_every"}
"""Settings that decide when a run writes, not what it computes."""

PATIENCE = 60.0
"""Seconds that a second trainer waits for the first to leave the folder."""


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

    data: Parquet files of a dataset, or prompts with the answers they came with (`stage.data`).
    Leaves `folder/params`, `folder/final.json` and `folder/metrics.jsonl`. Interrupted at any step and
    started again, it goes on from its last checkpoint and ends in the same bits.
    """
    tokenizer = load_tokenizer(init / "tokenizer")
    examples = training_examples(training_conversations(data, stage.data), tokenizer, template, max_length)
    fit(init, examples, folder, stage, name)


def fit(init: Path, examples: Examples, folder: Path, stage: Stage, name: str) -> None:
    """`train`, on examples that are tokenized already."""
    info = read_info(init)
    steps = stage.steps or math.ceil(stage.epochs * len(examples) / stage.batch_size)
    if stage.warmup_steps >= steps:
        raise DistillError(f"stage {name}: warmup_steps is {stage.warmup_steps}, the run has {steps} steps: lower it")
    mesh, optimizer = make_mesh(), make_optimizer(stage, steps)
    rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if stage.batch_size % rows:
        raise DistillError(
            f"stage {name}: batch_size {stage.batch_size} cannot be split over {rows} devices: "
            f"take a multiple of {rows}"
        )
    loader = Loader(examples, stage.batch_size, stage.seed)
    identity = {
        "init": info.digest,
        "examples": examples.digest(),
        "stage": stage.model_dump(exclude=SCHEDULING),
        "mesh": dict(mesh.shape),
        "code": closure.digest(Path(__file__)),
        "jax": jax.__version__,
    }
    with _alone(folder), _until_told() as told, Steps(folder / "steps", identity) as kept:
        config, state, where = initial_state(init, optimizer, mesh)
        first, state = kept.restore(state, where)
        kept.forget_metrics_after(first)
        run = make_step(config, optimizer, mesh, where)
        rate = learning_rate(stage, steps)
        started = time.monotonic()
        bar = tqdm(total=steps, initial=first, desc=name, unit="step", mininterval=1.0, file=sys.stderr)
        with bar, kept.metrics.open("a", encoding="utf-8") as log:
            for step in range(first + 1, steps + 1):
                state, metrics = run(state, loader.batch(step - 1))
                stopping = bool(told)  # read once: a signal that comes later finds the next step
                saving = stopping or (step % stage.checkpoint_every == 0 and step < steps)
                if saving or step % stage.log_every == 0 or step in (1, steps):
                    _refuse_nan(name, step, metrics)
                if step % stage.log_every == 0 or step in (1, steps):
                    tokens, seconds = loader.learned_before(step), time.monotonic() - started
                    row = {
                        "step": step,
                        "loss": float(metrics["loss"]),
                        "learning_rate": float(rate(step - 1)),
                        "grad_norm": float(metrics["grad_norm"]),
                        "tokens": tokens,
                        "tokens_per_second": (tokens - loader.learned_before(first)) / seconds,
                        "seconds": seconds,
                    }
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    bar.set_postfix(loss=f"{row['loss']:.4f}", tokens_s=round(row["tokens_per_second"]), refresh=False)
                bar.update()
                if saving:
                    kept.save(step, state)
                if stopping:
                    kept.finish()
                    raise DistillError(f"stage {name} was told to stop and saved step {step}: run again to go on")
        kept.finish()
        seconds = round(time.monotonic() - started, 3)
        digest = _finish(init, folder, config, state)
        shutil.copyfile(kept.metrics, folder / "metrics.jsonl")
        write_json(
            folder / "final.json",
            {
                "schema": SCHEMA_VERSION,
                "stage": name,
                "step": steps,
                "digest": digest,
                "examples": len(examples),
                "dropped": dict(examples.dropped),
                "tokens": loader.learned_before(steps),
                "seconds": seconds,
            },
        )
        shutil.rmtree(kept.folder)


def _refuse_nan(name: str, step: int, metrics: dict) -> None:
    """A loss that is no number stops the run; it is never saved."""
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DistillError(
            f"stage {name}: loss {loss} and gradient norm {norm} at step {step}: lower learning_rate "
            "or clip_norm and run again"
        )


def _finish(init: Path, folder: Path, config: ModelConfig, state: State) -> str:
    """Write the params folder beside the checkpoints and move it into place; gives its digest."""
    info = read_info(init)
    leaves = flat(decoder.unstack(config, state.params)).items()
    tree = nest({path: np.asarray(leaf).astype(decoder.loaded_type(path, info.dtype)) for path, leaf in leaves})
    info = info.model_copy(update={"source": str(folder), "revision": None, "digest": tree_digest(tree)})
    with replacing(folder / "params") as tmp:
        tmp.mkdir()
        copy_tokenizer([init / "tokenizer"], tmp / "tokenizer")
        save_weights(tmp / "weights", tree)
        write_info(tmp, info)
    return info.digest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second trainer out of the folder: it waits a minute, saying so, then fails naming the first."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "steps.pid"
    lock = FileLock(folder / "steps.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        process = owner.read_text().strip() if owner.exists() else "unknown"
        print(
            f"process {process} is training in {folder}: waiting up to {PATIENCE:.0f} s",
            file=sys.stderr,
        )
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise DistillError(
                f"process {process} is training in {folder}: wait for it, or stop it (kill {process})"
            ) from None
    try:
        owner.write_text(f"{os.getpid()}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _until_told() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM came: clusters send it before they take the machine."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
