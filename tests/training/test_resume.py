"""An interrupted run ends in the bits of one that was not, and says each step once."""

import gc
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filelock import FileLock
from small_disk import small_disk
from tiny_models import tiny_llama

from distill import kept
from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.info import read_info
from distill.checkpoints.store import load_weights
from distill.config.stages import Stage
from distill.config.training import MeshShape
from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.errors import DistillError
from distill.files import read_json, read_jsonl
from distill.kept import Kept
from distill.training import turn
from distill.training.checkpoints import Steps
from distill.training.held_out import split
from distill.training.loop import fit, train
from distill.training.state import State
from distill.training.step import mean_loss
from distill.training.watch import Watch

STAGE = Stage(init="-", steps=12, batch_size=8, learning_rate=3e-3, warmup_steps=2, checkpoint_every=4, log_every=3)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    import_checkpoint(tiny_llama(folder / "hf"), folder / "params", dtype="float32", origin="tiny")
    return folder / "params"


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 12, 10)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.ones(offsets[-1], np.uint8)
    return Examples(rng.integers(6, 35, offsets[-1]).astype(np.int32), mask, offsets, {})


@pytest.fixture(scope="module")
def undisturbed(init: Path, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(init, examples, folder, STAGE, "sft")
    return folder


class Cut(Exception):
    """The end of a process, as far as the loop can tell."""


def disturb(monkeypatch: pytest.MonkeyPatch, step: int, what) -> None:
    """Do `what` when batch `step` is asked for."""
    batch = Loader.batch

    def disturbed(self: Loader, index: int, part: slice) -> dict:
        if index == step:
            what()
        return batch(self, index, part)

    monkeypatch.setattr(Loader, "batch", disturbed)


def cut_at(step: int, init: Path, examples: Examples, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends without a word when it asks for batch `step`."""

    def cut() -> None:
        raise Cut

    with monkeypatch.context() as patch:
        disturb(patch, step, cut)
        with pytest.raises(Cut):
            fit(init, examples, folder, STAGE, "sft")


def same(left: Path, right: Path) -> None:
    assert read_info(left / "params").digest == read_info(right / "params").digest
    final = [{k: v for k, v in read_json(f / "final.json").items() if k != "seconds"} for f in (left, right)]
    assert final[0] == final[1]
    timed = ("seconds", "seconds_left", "tokens_per_second")
    rows = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(f / "metrics.jsonl")]
        for f in (left, right)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("step", [2, 5, 11])
def test_a_cut_run_ends_in_the_same_bits(init, examples, undisturbed, tmp_path, monkeypatch, step: int) -> None:
    cut_at(step, init, examples, tmp_path, monkeypatch)
    assert not (tmp_path / "params").exists()
    fit(init, examples, tmp_path, STAGE, "sft")
    same(tmp_path, undisturbed)
    assert not (tmp_path / "steps").exists()


def test_a_lost_machine_goes_on_from_what_is_kept_elsewhere(init, examples, undisturbed, tmp_path, monkeypatch) -> None:
    elsewhere = tmp_path / "volume/steps"

    def lost() -> None:
        while not (file := elsewhere / "manifest.json").exists() or '"steps/4/' not in file.read_text():
            time.sleep(0.01)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(kept, "EVERY", 0.01)
        patch.setattr(Kept, "close", lambda self: self._closed.set())  # no last word
        disturb(patch, 6, lost)
        with pytest.raises(Cut):
            fit(init, examples, tmp_path / "lost", STAGE, "sft", elsewhere=str(elsewhere))
    asked, batch = [], Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda self, index, part: asked.append(index) or batch(self, index, part))
    fit(init, examples, tmp_path / "new", STAGE, "sft", elsewhere=str(elsewhere))
    assert asked == [4, 5, 6, 7, 8, 9, 10, 11]
    same(tmp_path / "new", undisturbed)
    assert not elsewhere.exists()


def test_sigterm_saves_the_step_it_is_at(init, examples, undisturbed, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        disturb(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(DistillError, match="told to stop and saved step 7"):
            fit(init, examples, tmp_path, STAGE, "sft")
    asked = []
    with monkeypatch.context() as patch:
        batch = Loader.batch
        patch.setattr(Loader, "batch", lambda self, index, part: asked.append(index) or batch(self, index, part))
        fit(init, examples, tmp_path, STAGE, "sft")
    assert asked == [7, 8, 9, 10, 11]
    same(tmp_path, undisturbed)


def test_a_damaged_step_falls_back_to_the_one_before(
    init, examples, undisturbed, tmp_path, monkeypatch, capsys
) -> None:
    with monkeypatch.context() as patch:
        disturb(patch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(DistillError, match="saved step 10"):
            fit(init, examples, tmp_path, STAGE, "sft")
    cut = [file for file in (tmp_path / "steps" / "10").rglob("*") if file.is_file()]
    for file in cut:
        if file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    fit(init, examples, tmp_path, STAGE, "sft")
    assert "step 10 cannot be read" in capsys.readouterr().err
    same(tmp_path, undisturbed)


def test_other_settings_start_over(init, examples, tmp_path, monkeypatch) -> None:
    cut_at(6, init, examples, tmp_path, monkeypatch)
    asked = []
    batch = Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda self, index, part: asked.append(index) or batch(self, index, part))
    fit(init, examples, tmp_path, STAGE.model_copy(update={"learning_rate": 1e-3}), "sft")
    assert asked[0] == 0


def test_what_is_being_saved_is_not_what_the_next_step_makes_of_it(tmp_path) -> None:
    """The save holds a step up for no copy, and the state's memory is given away before it is written."""
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: -leaf, state), donate_argnums=0)
    state = State({"w": jnp.ones((1000, 1000))}, {"m": jnp.full((1000, 1000), 2.0)})
    with Steps(tmp_path / "steps", {}, 2) as kept:
        kept.save(1, state, {})
        for _ in range(3):
            state = step(state)
        kept.finish()
        found = kept.read(1, state, jax.tree.map(lambda leaf: leaf.sharding, state))
    assert [float(leaf.min()) for leaf in jax.tree.leaves(found)] == [1.0, 2.0]
    assert [float(leaf.max()) for leaf in jax.tree.leaves(found)] == [1.0, 2.0]


def test_steps_of_another_model_are_said_to_be_another_runs(init, examples, tmp_path, capsys) -> None:
    other = {"init": "a digest", "stage": {"steps": 12}, "jax": jax.__version__}
    with Steps(tmp_path / "steps", other, 2) as kept:
        kept.save(3, State({"a": jnp.zeros(4)}, {"m": jnp.zeros(4)}), {})
    with Steps(tmp_path / "steps", other | {"init": "another one"}, 2) as kept:
        assert kept.manager.all_steps() == []
    assert f"{tmp_path}/steps is of another run (init was another): starting over" in capsys.readouterr().err


def test_a_row_that_was_not_written_to_its_end_is_none(tmp_path) -> None:
    with Steps(tmp_path / "steps", {}, 2) as steps:
        steps.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
        steps.forget_metrics_after(2)
        assert read_jsonl(steps.metrics) == [{"step": 1}, {"step": 2}]


def test_a_step_of_another_architecture_is_refused_and_left_alone(tmp_path) -> None:
    def state(width: int, **more: jax.Array) -> State:
        return State({"embed": jnp.zeros((4, width)), **more}, {"m": jnp.zeros(3)})

    with Steps(tmp_path / "steps", {}, 2) as kept:
        kept.save(1, state(8), {})
    for other, said in (
        (state(16), r"embed is \(4, 8\) there and \(4, 16\) in the model that the stage starts from"),
        (state(8, head=jnp.zeros(2)), r"head is not there and \(2,\) in the model"),
    ):
        where = jax.tree.map(lambda leaf: leaf.sharding, other)
        with (
            pytest.raises(DistillError, match=rf"^step 1 in .*steps is of another architecture: {said}"),
            Steps(tmp_path / "steps", {}, 2) as kept,
        ):
            kept.restore(other, where)
    with Steps(tmp_path / "steps", {}, 2) as kept:
        assert kept.restore(state(8), jax.tree.map(lambda leaf: leaf.sharding, state(8)))[0] == 1


# Orbax closes its event loop under the writes that were still to come, and they complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_the_step_before_and_the_run_goes_on(
    init, examples, undisturbed, tmp_path, monkeypatch
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:

        def fill() -> None:
            deadline = time.monotonic() + 60
            while not (disk / "steps" / "4").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            room = os.statvfs(disk)
            (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 4 * 4096))

        with monkeypatch.context() as patch:
            disturb(patch, 6, fill)
            with pytest.raises(OSError, match="No space left"):
                fit(init, examples, disk, STAGE, "sft")
        gc.collect()  # here, and not under another test
        assert [path.name for path in (disk / "steps").glob("[0-9]*") if path.name.isdigit()] == ["4"]
        (disk / "ballast").unlink()
        asked = []
        batch = Loader.batch
        monkeypatch.setattr(Loader, "batch", lambda self, index, part: asked.append(index) or batch(self, index, part))
        fit(init, examples, disk, STAGE, "sft")
        assert asked[0] == 4
        same(disk, undisturbed)


def test_an_init_with_another_vocabulary_than_the_teachers_is_refused(init, tmp_path) -> None:
    other = shutil.copytree(init, tmp_path / "other")
    text = json.loads((other / "tokenizer/tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer/tokenizer.json").write_text(json.dumps(text))
    stage = STAGE.model_copy(update={"objective": "logits"})
    with pytest.raises(DistillError) as error:
        train(other, [], tmp_path / "kd", stage, "kd", template="tokenizer", max_length=48, teacher=init)
    assert str(error.value) == (
        "stage kd: objective logits is not open to this teacher and student, ids do not mean the same to both (33 "
        "tokens have the same id in both, of 35 and 35): take one of sft, aligned_logits"
    )
    assert not (tmp_path / "kd").exists()


def test_weights_of_another_architecture_than_their_description_are_refused(init, examples, tmp_path) -> None:
    other = shutil.copytree(init, tmp_path / "other")
    info = json.loads((other / "model.json").read_text())
    info["architecture"]["hidden"] *= 2
    (other / "model.json").write_text(json.dumps(info))
    with pytest.raises(DistillError) as error:
        fit(other, examples, tmp_path / "sft", STAGE, "sft")
    assert re.search(r"cannot be restored \(embed is stored as \(\d+, \d+\), model.json makes it \(", str(error.value))
    assert "\n" not in str(error.value)


def test_how_often_it_saves_and_logs_is_no_other_setting(init, examples, undisturbed, tmp_path) -> None:
    fit(init, examples, tmp_path, STAGE.model_copy(update={"checkpoint_every": 5, "log_every": 1}), "sft")
    assert read_info(tmp_path / "params").digest == read_info(undisturbed / "params").digest
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 13))


def test_a_loss_that_is_no_number_names_its_step_and_is_not_saved(init, examples, tmp_path) -> None:
    wild = STAGE.model_copy(update={"learning_rate": 1e30, "clip_norm": 1e30})
    with pytest.raises(DistillError, match=r"stage sft: loss .* at step \d+: lower learning_rate"):
        fit(init, examples, tmp_path, wild, "sft")
    assert not (tmp_path / "params").exists()
    assert not list((tmp_path / "steps").glob("[0-9]*"))


def test_a_second_trainer_is_kept_out_and_told_who_is_there(init, examples, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.2)
    (tmp_path / "steps.pid").write_text("4711\n")
    with FileLock(tmp_path / "steps.lock"), pytest.raises(DistillError, match="process 4711 is training in"):
        fit(init, examples, tmp_path, STAGE, "sft")
    assert "waiting up to" in capsys.readouterr().err


def test_metrics_hold_what_was_learned(undisturbed, examples) -> None:
    rows = read_jsonl(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 3, 6, 9, 12]
    assert rows[-1]["loss"] < rows[0]["loss"]
    learned = sum(int(Loader(examples, 8, 0).batch(step)["mask"].sum()) for step in range(12))
    assert rows[-1]["tokens"] == read_json(undisturbed / "final.json")["tokens"] == learned
    assert json.loads((undisturbed / "final.json").read_text())["examples"] == len(examples)


def test_a_run_goes_on_over_another_mesh_and_in_other_parts(init, examples, undisturbed, tmp_path, monkeypatch) -> None:
    """Not to the bit, since sums have another order, and AdamW makes a whole step of a gradient's last bits."""
    cut_at(6, init, examples, tmp_path, monkeypatch)
    asked = []
    batch = Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda self, index, part: asked.append(index) or batch(self, index, part))
    other = {"mesh": MeshShape(data=2, fsdp=2, tensor=2), "micro_batch_size": 4, "remat": "none", "log_every": 1}
    fit(init, examples, tmp_path, STAGE.model_copy(update=other), "sft")
    assert asked[0] == 4
    losses = [{row["step"]: row["loss"] for row in read_jsonl(folder / "metrics.jsonl")}
              for folder in (tmp_path, undisturbed)]  # fmt: skip
    assert [losses[0][step] for step in losses[1]] == pytest.approx([*losses[1].values()], rel=1e-4)
    start, one, two = (load_weights(params)[1] for params in (init, tmp_path / "params", undisturbed / "params"))
    way, apart = (optax.tree.norm(jax.tree.map(np.subtract, two, other)) for other in (start, one))
    assert float(apart) < 0.05 * float(way)


def test_the_best_step_by_held_out_loss_is_kept_and_chosen(init, examples, tmp_path) -> None:
    """A rate that grows wild towards the end: the best step is not among the newest two."""
    wild = {"held_out": 2, "held_out_every": 1, "checkpoint_every": 1, "select": "best", "learning_rate": 0.3}
    stage = STAGE.model_copy(update=wild | {"schedule": "constant", "warmup_steps": 11})
    fit(init, examples, tmp_path, stage, "sft")
    rows, final = read_jsonl(tmp_path / "metrics.jsonl"), read_json(tmp_path / "final.json")
    losses = {row["step"]: row["held_out_loss"] for row in rows}
    best = min(losses, key=losses.get)
    assert best < 10
    assert (final["step"], final["held_out_loss"]) == (best, losses[best])
    assert rows[0]["held_out_perplexity"] == pytest.approx(np.exp(rows[0]["held_out_loss"]))
    assert final["examples"] == 10
    _, chosen = load_weights(tmp_path / "params", scanned=True)
    apart = split(examples, 2, "sft")[1]
    loader = Loader(apart, 2, 0, Loader(examples, 1, 0).length)
    loss, _ = mean_loss(load_weights(init)[0], chosen, loader.batch(0), stage)
    assert float(loss) == pytest.approx(losses[best], abs=1e-5)


def test_what_is_held_out_is_the_same_for_every_seed_and_never_trained(examples) -> None:
    train, apart = split(examples, 3, "sft")
    assert (len(train), len(apart)) == (7, 3)
    whole = sorted(tuple(examples[i][0].tolist()) for i in range(10))
    assert sorted(tuple(part[i][0].tolist()) for part in (train, apart) for i in range(len(part))) == whole
    with pytest.raises(DistillError, match="held_out is 10, there are 10 examples: lower it"):
        split(examples, 10, "sft")


def test_tensorboard_has_what_the_metrics_have(init, examples, tmp_path) -> None:
    stage = STAGE.model_copy(update={"tensorboard": True})
    if find_spec("tensorboardX") is None:
        with pytest.raises(DistillError, match="tensorboard: true needs tensorboardX: pip install tensorboardX"):
            fit(init, examples, tmp_path, stage, "sft")
        return
    fit(init, examples, tmp_path, stage, "sft")
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"grad_norm" in events.read_bytes()


def test_a_spike_ends_the_run_with_step_and_batch_named(examples) -> None:
    watch = Watch("sft", Loader(examples, 4, 0), 3.0)
    for step in range(1, 101):
        watch.add(step, {"loss": 2.0, "grad_norm": 1.0})
    watch.add(101, {"loss": 6.1, "grad_norm": 1.0})
    named = ", ".join(map(str, Loader(examples, 4, 0).order(100)))
    with pytest.raises(DistillError, match=rf"loss 6.1 at step 101 is more than 3 times .* \(examples {named}\)"):
        watch.look()


def test_a_batch_larger_than_the_data_is_refused(init, examples, tmp_path) -> None:
    with pytest.raises(DistillError, match="batch_size is 16, its data makes 10 examples: lower it"):
        fit(init, examples, tmp_path, STAGE.model_copy(update={"batch_size": 16}), "sft")


def test_examples_that_the_student_cannot_read_are_refused(init, examples, tmp_path) -> None:
    strange = replace(examples, ids=examples.ids + 40)
    with pytest.raises(DistillError, match=r"have token \d+, the student knows 40"):
        fit(init, strange, tmp_path, STAGE, "sft")
    long = Examples(np.full(300, 7, np.int32), np.ones(300, np.uint8), np.asarray([0, 300]), {})
    with pytest.raises(DistillError, match="an example has 300 tokens, the student's context is 256: lower max_length"):
        fit(init, long, tmp_path, STAGE, "sft")


def test_a_mesh_that_does_not_fit_the_devices_is_refused(init, examples, tmp_path) -> None:
    with pytest.raises(DistillError, match=r"tensor 3 does not fit 8 devices: the product must be 8, and one axis may"):
        fit(init, examples, tmp_path, STAGE.model_copy(update={"mesh": MeshShape(tensor=3)}), "sft")


def test_a_batch_that_the_devices_do_not_divide_is_refused(init, examples, tmp_path) -> None:
    with pytest.raises(DistillError, match="batch_size 6 cannot be split over 8 devices"):
        fit(init, examples, tmp_path, STAGE.model_copy(update={"batch_size": 6}), "sft")
