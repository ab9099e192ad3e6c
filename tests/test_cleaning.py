"""A run is deleted as a whole, and only a run."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from distill.cleaning import clean_run
from distill.errors import DistillError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in ("models/teacher-12345678/params/model.json", "demo/recipe.yaml", "demo/work/a", "other/recipe.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    return tmp_path


def test_the_run_goes_and_the_rest_stays(results: Path) -> None:
    assert clean_run(results, "demo") == 10
    assert not (results / "demo").exists()
    assert (results / "models/teacher-12345678/params/model.json").exists()
    assert (results / "other/recipe.yaml").exists()


@pytest.mark.parametrize(
    ("run", "said"),
    [("", "is not a run's name"), ("models", "is not a run's name"), ("../x", "is not a run's name"),
     ("dmo", "there is demo, other in")],
)  # fmt: skip
def test_what_is_no_run_is_refused(results: Path, run: str, said: str) -> None:
    with pytest.raises(DistillError, match=said):
        clean_run(results, run)
    assert (results / "demo/work/a").exists()


def test_while_a_snakemake_is_at_work_nothing_is_deleted(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(results)
    (results / ".snakemake").mkdir()
    lock = "f = open('.snakemake/alive', 'w+'); fcntl.lockf(f, fcntl.LOCK_SH)"
    command = [sys.executable, "-c", f"import fcntl, sys; {lock}; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(DistillError, match="a snakemake is at work"):
            clean_run(results, "demo")
        other.stdin.close()
    assert clean_run(results, "demo") == 10


def test_a_run_that_is_training_is_refused(results: Path) -> None:
    lock = results / "demo/students/sft/steps.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(DistillError, match="sft is being trained"):
        clean_run(results, "demo")
    clean_run(results, "demo")
