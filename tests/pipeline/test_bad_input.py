"""What is wrong with the input is said in one line, and nothing half-made is left."""

import json
import re
import shutil
from pathlib import Path

import pytest
from project import Project


def complaints(output: str) -> list[str]:
    """The errors told, also one that follows another job's progress bar on its line."""
    return re.findall(r"error: [^\r\n]*", output)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts__batchsize": 4}, "prompts.batchsize is not a setting (did you mean batch_size?)"),
        ({"stages__sft__init": "studnet"}, "studnet is neither a model nor a stage (did you mean student?)"),
        ({"generation__max_prefill_length": 64}, "max_prefill_length (64) must be smaller"),
        ({"models__teacher__source": "./nowhere"}, "models.teacher.source: folder ./nowhere does not exist"),
        ({"prompts__source": "nothing.jsonl"}, "prompts.source: nothing.jsonl does not exist"),
    ],
)
def test_a_wrong_recipe(project: Project, changes: dict, said: str) -> None:
    shutil.rmtree(project.folder / "results")
    project.recipe(**changes)
    outcome = project.snakemake()
    assert outcome.code != 0
    (line,) = outcome.output.splitlines()[1:]  # after Snakemake's word on its profile
    assert line.startswith("error: ")
    assert said in line
    assert not (project.folder / "results").exists()


def test_a_dataset_without_the_columns(project: Project) -> None:
    """The complaint is told when it comes and again at the end; what did not depend on it may be there."""
    (project.folder / "prompts.jsonl").write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    shutil.rmtree(project.run_folder)
    outcome = project.snakemake()
    assert outcome.code != 0
    assert "Traceback" not in outcome.output
    first, last = complaints(outcome.output)
    assert "(there is question, answer): name yours in `messages`" in last
    assert first == last
    made = [name for name in ("prompts", "completions", "dataset", "students", "export")
            for path in project.run_folder.glob(f"{name}/**/*") if path.is_file()]  # fmt: skip
    assert made == []


def test_truncated_weights(project: Project) -> None:
    for name in ("teacher", "student"):
        weights = project.folder / f"models/{name}/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    shutil.rmtree(project.folder / "results")
    outcome = project.snakemake("results/tiny/completions/0000.parquet")
    assert outcome.code != 0
    assert "Traceback" not in outcome.output
    assert "model.safetensors" in complaints(outcome.output)[-1]
    assert not any(path for path in (project.folder / "results/models").glob("*/params"))


@pytest.mark.slow
def test_what_fails_fails_again(project: Project) -> None:
    """Snakemake deletes what a failed job had made before, and takes what follows from it for current."""
    project.recipe(evaluation__max_target_length=3)
    for _ in range(2):
        outcome = project.snakemake()
        assert outcome.code != 0
        assert "raise evaluation.max_target_length" in complaints(outcome.output)[-1]
    project.recipe()
    whole = (project.folder / "models/teacher/model.safetensors").read_bytes()
    (project.folder / "models/teacher/model.safetensors").write_bytes(whole[:-100])
    for _ in range(2):
        outcome = project.snakemake()
        assert outcome.code != 0
        assert "model.safetensors is truncated" in complaints(outcome.output)[-1]


def test_an_empty_dataset(project: Project) -> None:
    (project.folder / "prompts.jsonl").write_text("")
    shutil.rmtree(project.run_folder)
    outcome = project.snakemake("prompts")
    assert outcome.code != 0
    assert "is empty" in complaints(outcome.output)[-1]
    assert list(Path(project.run_folder).glob("prompts/*")) == []
