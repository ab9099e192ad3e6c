"""How the processes of a run find each other, and what of a node's devices each has."""

import jax
import pytest

from distill.errors import DistillError
from distill.parallel import runtime

NAMES = (*runtime.PROCESSES, "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list:
    """What JAX is given."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    calls: list = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **more: calls.append((args, more)))
    return calls


@pytest.mark.parametrize(
    ("visible", "tasks", "nodes", "local", "devices"),
    [
        ("0,1,2,3,4,5,6,7", 2, 2, 0, [0, 1, 2, 3, 4, 5, 6, 7]),  # a task a node has all of it
        ("0,1,2,3", 4, 2, 1, [2, 3]),
        ("0,1,2,3", 4, 1, 3, [3]),
        ("5", 4, 1, 3, [0]),  # SLURM has bound the task to one
        (None, 2, 1, 1, None),  # processors alone
    ],
)
def test_a_task_of_slurms_has_its_share_of_the_node(
    joined: list,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    tasks: int,
    nodes: int,
    local: int,
    devices: list,
) -> None:
    given = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes, "SLURM_LOCALID": local}
    for name, value in (given | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})).items():
        monkeypatch.setenv(name, str(value))
    runtime.join()
    assert joined == [((), {"local_device_ids": devices})]


def test_one_process_joins_none(joined: list, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.join()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    runtime.join()
    assert joined == []


def test_half_of_the_environment_is_refused(joined: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_PROCESSES", "2")
    with pytest.raises(DistillError, match="give all three"):
        runtime.join()
