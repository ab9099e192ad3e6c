"""Two real processes over loopback train, save, restore and generate as one; each reads or samples its part."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.store import load_weights
from distill.files import read_json, read_jsonl

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import json, os, signal, sys
from pathlib import Path
import jax
import numpy as np
from distill.parallel.runtime import join, start
start()
join()
from distill.config.stages import Stage
from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.errors import DistillError
from distill.training.loop import fit
init, teacher, folder = map(Path, sys.argv[1:4])
random = np.random.default_rng(0)
lengths = random.integers(4, 12, 12)
offsets = np.concatenate([[0], np.cumsum(lengths)])
ids = random.integers(6, 35, offsets[-1]).astype(np.int32)
examples = Examples(ids, np.ones(len(ids), np.uint8), offsets, {})
parts, steps, batch = set(), set(), Loader.batch
def counted(self, step, part):
    parts.add((part.start, part.stop))
    steps.add(step)
    if str(step) == os.environ.get("STOPPED_AT") and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return batch(self, step, part)
Loader.batch = counted
stage = Stage.model_validate_json(sys.argv[4])
run = lambda: fit(init, examples, folder, stage, "kd", teacher=teacher)
if "STOPPED_AT" in os.environ:
    try:
        run()
    except DistillError as told:
        print(told)
        steps.clear()
        del os.environ["STOPPED_AT"]
run()

from distill.checkpoints.store import load_weights
from distill.generation.engine import Engine
from distill.generation.requests import Request
from distill.parallel.mesh import engine_mesh
mesh = engine_mesh({"data": 1, "expert": 1, "tensor": jax.device_count()})
config, weights = load_weights(init, mesh=mesh)
engine = Engine(config, weights, slots=2, max_length=24, real_vocab=35, mesh=mesh)
asked = [Request((7, 8, 9), seed=1, sample=i, max_tokens=8) for i in range(3)]
answers = [result.tokens for _, result in sorted(engine.run(asked), key=lambda named: named[0])]
print(json.dumps([sorted(parts), sorted(steps), answers]))
"""


def started(init: Path, folder: Path, stage: dict, **environment: str) -> subprocess.Popen:
    settings = {"PYTHONPATH": str(ROOT / "lib"), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", RUN, str(init), str(init.parent / "teacher"), str(folder), json.dumps(stage)]
    return subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen) -> list:
    """The parts of batches that a process read, for which steps since it went on, and its answers."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_processes_are_one(tmp_path: Path) -> None:
    """A signal to one of them has both save, and both go on from there."""
    for seed, name in enumerate(("init", "teacher")):
        folder = tiny_llama(tmp_path / f"{name}-hf", seed=seed)
        import_checkpoint(folder, tmp_path / name, dtype="float32", origin="tiny")
    # The third step's batch is the student's own; NLL, divergence and samples are all in it.
    own = {"objective": "on_policy", "alpha": 0.5, "on_policy": {"share": 0.5, "slots": 4}}
    stage = {"init": "-", "steps": 4, "batch_size": 4, "learning_rate": 3e-3, "log_every": 1, "held_out": 2,
             "checkpoint_every": 10} | own  # fmt: skip
    parts, steps, answers = ended(started(tmp_path / "init", tmp_path / "one", stage))
    assert (parts, steps) == ([[0, 4]], [0, 1, 3])
    assert len({tuple(answer) for answer in answers}) == 3, "one answer three times proves little"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [
        started(
            tmp_path / "init", tmp_path / "two", stage, STOPPED_AT="1",
            DISTILL_COORDINATOR=f"127.0.0.1:{port}", DISTILL_PROCESSES="2", DISTILL_PROCESS=str(number),
        )
        for number in range(2)
    ]  # fmt: skip
    rest = [0, 3]  # 0 is the examples that were kept apart, the third step's batch is not the data's
    try:
        assert [ended(process) for process in pair] == [[[[0, 2]], rest, answers], [[[2, 4]], rest, answers]]
    finally:
        for process in pair:  # one that waits for the other, which failed
            process.kill()
            process.communicate()
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [1, 2, 3, 4]
    for name in ("loss", "nll", "divergence", "grad_norm", "tokens"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=1e-4)
    assert read_json(tmp_path / "two/final.json")["step"] == 4
    assert not (tmp_path / "two/steps").exists()
    start, alone, together = (load_weights(tmp_path / name)[1] for name in ("init", "one/params", "two/params"))
    way, apart = (optax.tree.norm(jax.tree.map(np.subtract, alone, other)) for other in (start, together))
    assert float(apart) < 0.05 * float(way), "AdamW makes a whole step of a gradient's last bits, here and there"
