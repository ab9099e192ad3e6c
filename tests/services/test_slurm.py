"""A real SLURM of one node: what profiles/slurm promises, through sbatch."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipeline.project import Project

from distill.files import read_json, read_jsonl

pytestmark = pytest.mark.slurm

PROFILE = [
    "--profile", "profiles/slurm", "--default-resources", "slurm_account=ci", "slurm_partition=main",
    "--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5",
]  # fmt: skip
SMALL = {"memory_gb": 1, "minutes": 10}
PATIENCE = 1800.0  # seconds: a start takes ten of a processor, minutes where others want it too
RESOURCES = {"generate": SMALL | {"accelerators": 2}, "train": SMALL, "evaluate": SMALL, "other": SMALL}


def jobs(since: str, fields: str) -> list[list[str]]:
    """Fields of the jobs that SLURM has been given since then."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--starttime", since, "--format", fields]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split("|") for line in lines]


def now() -> str:
    time.sleep(1)  # the accounts count whole seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def until(so: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not so():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(root: Path) -> Iterator[None]:
    subprocess.run(["bash", root / "tests/services/slurm/start"], check=True, timeout=180)
    yield
    subprocess.run(["bash", root / "tests/services/slurm/stop"], timeout=60)


@dataclass(frozen=True)
class Finished:
    """The small version of the default recipe, gone through sbatch. Not to be changed: take `project`."""

    project: Project
    jobs: list[list[str]]
    servers: int


@pytest.fixture(scope="module")
def finished(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    project, since = Project.make(tmp_path_factory.mktemp("slurm") / "finished"), now()
    project.recipe(resources=RESOURCES)
    outcome = project.snakemake(*PROFILE, cores="", seconds=PATIENCE)
    assert outcome.code == 0, outcome.output
    servers = len(list((project.folder.parent / "runtime/distill").glob("*.log")))
    return Finished(project, jobs(since, "comment,state,submitline"), servers)


@pytest.fixture
def project(finished: Finished, request: pytest.FixtureRequest) -> Project:
    return finished.project.copy(finished.project.folder.parent / request.node.name)


def test_the_recipe_goes_through_sbatch_and_ends_as_on_one_machine(finished: Finished) -> None:
    project, submitted = finished.project, finished.jobs
    assert {state for _, state, _ in submitted} == {"COMPLETED"}
    rules = {re.split("_wildcards_", comment)[0] for comment, _, _ in submitted}
    assert {"rule_train", "rule_evaluate", "rule_index_prompts", "rule_build_dataset", "rule_report"} <= rules
    alone = project.copy(project.folder.parent / "alone")
    shutil.rmtree(alone.run_folder)
    alone.run("students")
    here, there = (read_json(p.run_folder / "students/sft/final.json") for p in (project, alone))
    assert here["digest"] == there["digest"]
    ledgers = [read_json(p.run_folder / "dataset/ledger.json") for p in (project, alone)]
    assert ledgers[0] == ledgers[1]


def test_a_group_is_one_allocation_with_one_teacher(finished: Finished) -> None:
    """Three batches, one sbatch: their processors add up, the accelerators do not; one server has started."""
    (line,) = (line for _, _, line in finished.jobs if "gres" in line)
    for flag in ("--gres=gpu:2", "--mem-per-gpu=500M", "--cpus-per-task=3", "-t 10", "-A ci", "-p main", "--requeue"):
        assert flag in line, line
    assert "--mem " not in line
    assert finished.servers == 1


def test_a_failing_batch_leaves_the_files_of_the_others(project: Project) -> None:
    for file in (project.run_folder / "completions").iterdir():
        file.unlink()
    shutil.rmtree(project.run_folder / "work/samples")
    prompts = project.run_folder / "prompts/0001.jsonl"
    row = json.loads(prompts.read_text().splitlines()[0])
    prompts.write_text(json.dumps(row | {"prompt_token_ids": [7] * 40}) + "\n")
    outcome = project.snakemake(*PROFILE, "--retries", "0", "completions", cores="", seconds=PATIENCE)
    assert outcome.code != 0
    assert "has 40 tokens, max_prefill_length is 32" in outcome.output
    there = sorted(file.name for file in (project.run_folder / "completions").glob("*.parquet"))
    assert there == ["0000.parquet", "0002.parquet"]


def test_two_tasks_train_as_one_and_go_on_after_scancel(project: Project) -> None:
    """SIGTERM saves the step they are at; the next attempt goes on from there."""
    since, folder = now(), project.run_folder / "students/sft"
    train = SMALL | {"tasks": 2}
    project.recipe(resources=RESOURCES | {"train": train}, stages__sft__steps=1000, stages__sft__checkpoint_every=5000)
    process = project.start(*PROFILE, "students")
    try:
        log = project.run_folder / "logs/train/sft.log"
        told = lambda: log.read_text(errors="replace") if log.exists() else ""  # noqa: E731  a bar may be half written
        until(lambda: re.search(r"\b[1-9]\d+/1000", told()) is not None, process)
        name = "rule_train_wildcards_sft"
        lines = subprocess.run(["squeue", "--noheader", "--format", "%i %k"], capture_output=True, text=True).stdout
        (job,) = (line.split()[0] for line in lines.splitlines() if line.endswith(name))
        subprocess.run(["scancel", job], check=True)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
    finally:
        process.kill()
    states = [state.split()[0] for _, comment, state in jobs(since, "jobid,comment,state") if comment == name]
    assert states == ["CANCELLED", "COMPLETED"]
    first = int(re.search(r"(\d+)/1000", told())[1])
    assert first >= 10, "it started over"
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == list(range(1, 1001))
    assert read_json(folder / "final.json")["step"] == 1000
    steps = subprocess.run(
        ["sacct", "--noheader", "--parsable2", "--starttime", since, "--format", "jobname,ntasks"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert sum(step.endswith("|2") for step in steps) == 2, steps


def test_any_scheduler_that_takes_a_script(project: Project) -> None:
    """profiles/generic, with sbatch as the command; SLURM's own plugin has no part in it."""
    since, name = now(), "results/tiny/compatibility.json"
    target = project.folder / name
    before = target.read_bytes()
    target.unlink()
    submit = (
        "sbatch --parsable -A ci --mem={resources.mem_mb} --time={resources.runtime} --job-name={rule} -o /dev/null"
    )
    outcome = project.snakemake(
        "--profile", "profiles/generic", "--cluster-generic-submit-cmd", submit, name, cores="", seconds=PATIENCE
    )
    assert outcome.code == 0, outcome.output
    assert target.read_bytes() == before
    assert jobs(since, "jobname,state,timelimitraw") == [["check_pair", "COMPLETED", "10"]]
