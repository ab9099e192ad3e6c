"""What reruns when something changes, told by the jobs that run."""

import os
import shutil
from pathlib import Path

import pytest
from project import Project

from distill.config.reading import read_recipe

GENERATED = {"generate 0000", "generate 0001", "generate 0002"}
ONE_MORE = {"read and tokenize the prompts", "prompts 0003", "generate 0003"}
REPORTED = {"add up the scores", "write the report"}
TRAINED = {"train sft", "export sft", "evaluate sft", *REPORTED}
BUILT = {"build the dataset", *TRAINED}


def test_a_run_makes_every_target(finished: Project) -> None:
    targets = [
        "recipe.yaml",
        "compatibility.json",
        "prompts/index.json",
        *(f"prompts/000{i}.jsonl" for i in range(3)),
        *(f"completions/000{i}.parquet" for i in range(3)),
        "dataset/data/train-00000-of-00001.parquet",
        "dataset/README.md",
        "dataset/ledger.json",
        "students/sft/params/model.json",
        "students/sft/final.json",
        "students/sft/metrics.jsonl",
        "export/sft/model.safetensors",
        *(f"evaluation/{name}.json" for name in ("teacher", "student", "sft")),
        "summary.json",
        "report.html",
    ]
    assert [name for name in targets if not (finished.run_folder / name).is_file()] == []
    kept = read_recipe(finished.run_folder / "recipe.yaml")
    assert kept == read_recipe(finished.folder / "config.yaml")


def test_nothing_changed(finished: Project) -> None:
    outcome = finished.snakemake()
    assert outcome.code == 0
    assert outcome.jobs == []
    assert "Nothing to be done" in outcome.output


def test_imported_weights_may_go_once_all_is_made(project: Project) -> None:
    for folder in (project.folder / "results/models").glob("*/params"):
        shutil.rmtree(folder)
    assert project.stale() == set()


def test_a_deleted_score_comes_back(project: Project) -> None:
    (project.run_folder / "evaluation/student.json").unlink()
    assert project.stale() == {"evaluate student", *REPORTED}


def test_touched_but_equal(project: Project) -> None:
    for name in (
        "prompts.jsonl",
        "models/teacher/model.safetensors",
        "results/tiny/completions/0001.parquet",
    ):
        os.utime(project.folder / name)
    assert project.stale() == set()


def test_a_comment_and_a_docstring(project: Project) -> None:
    with (project.folder / "lib/distill/generation/sampling.py").open("a") as file:
        file.write("\n# a comment\n")
    project.edit("lib/distill/generation/run.py", '"""A batch job', '"""One batch job')
    project.edit("scripts/train.py", "import click", "import click  # the command line")
    assert project.stale() == set()


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("scripts/export_checkpoint.py", {"export sft"}),
        ("lib/distill/evaluation/plots.py", {"write the report"}),
        ("lib/distill/evaluation/summary.py", REPORTED),
        ("lib/distill/training/optimizer.py", TRAINED),
        ("lib/distill/data/filters.py", BUILT),
        ("lib/distill/generation/run.py", GENERATED | BUILT),
    ],
)
def test_a_file_of_the_code(project: Project, name: str, jobs: set[str]) -> None:
    with (project.folder / name).open("a") as file:
        file.write("\nCHANGED = 1\n")
    assert project.stale() == jobs


def test_a_template(project: Project) -> None:
    project.edit("lib/distill/evaluation/style.html.j2", "}", " }")
    assert project.stale() == {"write the report"}


def test_code_pinned(project: Project) -> None:
    """What was made keeps the digest that it was made with; a changed setting still counts."""
    with (project.folder / "lib/distill/files.py").open("a") as file:
        file.write("\nCHANGED = 1\n")
    assert "generate 0000" in project.stale("results/tiny/completions/0000.parquet", "--quiet", "host")
    project.recipe(code="pinned")
    assert project.stale() == {"write the report"}  # which shows the recipe
    project.recipe(code="pinned", stages__sft__learning_rate=0.1)
    assert project.stale() == TRAINED


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        ({"stages__sft__learning_rate": 0.1}, TRAINED),
        ({"stages__sft__max_length": 40}, TRAINED),
        ({"dataset__keep_duplicates": True}, BUILT),
        ({"dataset__keep_duplicates": False}, set()),  # its default, said aloud
        ({"generation__sampling__temperature": 0.5}, GENERATED | BUILT),
        ({"generation__num_generations": 3}, GENERATED | BUILT),
        ({"evaluation__limit": 3}, {"evaluate teacher", "evaluate student", "evaluate sft", *REPORTED}),
        ({"report": {"title": "Spelling"}}, {"write the report"}),
    ],
)
def test_a_setting(project: Project, changes: dict, jobs: set[str]) -> None:
    project.recipe(**changes)
    assert project.stale() == jobs


def test_another_stage(project: Project) -> None:
    project.recipe(stages__gold={"init": "sft", "data": "original", "steps": 5})
    assert project.stale() == {"train gold", "export gold", "evaluate gold", *REPORTED}


def test_a_deleted_batch_comes_back_as_it_was(project: Project) -> None:
    batch = project.run_folder / "completions/0001.parquet"
    before = batch.read_bytes()
    batch.unlink()
    assert project.stale() == {"generate 0001", *BUILT}
    assert project.run("completions") == ["generate 0001"]
    assert batch.read_bytes() == before
    assert project.stale() == set()  # what follows has it already


def test_deleted_prompts_come_back_as_they_were(project: Project) -> None:
    files = [project.run_folder / name for name in ("prompts/0001.jsonl", "completions/0001.parquet")]
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    assert project.stale() == {"prompts 0001", "generate 0001", *BUILT}
    assert project.run("prompts", "completions") == ["prompts 0001", "generate 0001"]
    assert [file.read_bytes() for file in files] == before


def test_one_more_batch(project: Project) -> None:
    project.recipe(prompts__num_batches=4)
    assert set(project.run("completions")) == {
        "read and tokenize the prompts",
        "prompts 0003",
        "generate 0003",
    }
    assert project.stale() == BUILT


def test_the_dataset_is_appended_to(project: Project) -> None:
    """Rows beyond those asked for leave all as it is, but for the page that shows what was read."""
    project.add_prompts(2)
    assert project.run() == ["read and tokenize the prompts", "write the report"]
    project.recipe(prompts__num_batches="all")
    assert set(project.run("completions")) == {
        "read and tokenize the prompts",
        "prompts 0003",
        "generate 0003",
    }


def test_a_row_is_changed(project: Project) -> None:
    project.edit("prompts.jsonl", "spell f a", "spell f b")  # row 5, of batch 1
    assert set(project.run("completions")) == {
        "read and tokenize the prompts",
        "prompts 0001",
        "generate 0001",
    }


def test_the_teacher_is_changed(project: Project) -> None:
    weights = project.folder / "models/teacher/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    jobs = project.stale()
    assert {"read and tokenize the prompts", "build the dataset", "evaluate teacher", "train sft"} <= jobs
    assert "evaluate student" in jobs, "its KL is from the teacher"
    assert not any(job.startswith("import student") for job in jobs)


def test_a_trained_student_as_a_model(project: Project) -> None:
    """A params folder is taken as it is: nothing is imported."""
    student = "results/tiny/students/sft/params"
    project.recipe(run="next", models={"teacher": {"source": "models/teacher"}, "student": {"source": student}})
    jobs = project.stale()
    assert "train sft" in jobs
    assert not any(job.startswith("import") for job in jobs)


def test_a_student_made_of_the_teacher(project: Project) -> None:
    project.recipe(models__student={"derive": {"from": "teacher", "layers": 1}})
    (derived,) = {job.split()[-1] for job in project.stale() if job.startswith("derive")}
    assert project.run(f"results/models/{derived}/imported.json") == [f"derive {derived}"]
    assert project.stale() >= {"compare the tokenizers of teacher and student", "train sft"}


def test_models_from_the_hub(project: Project) -> None:
    """A pinned snapshot is fetched, then imported; nothing is asked of the Hub to know that."""
    project.recipe(models__teacher={"source": "org/big", "revision": "0" * 40, "tokenizer": "org/words"})
    jobs = project.stale()
    (folder,) = {job.split()[-1] for job in jobs if "teacher-" in job}
    assert {f"download {folder}", f"download the tokenizer of {folder}", f"import {folder}"} <= jobs
    assert not any(job.startswith("import student") for job in jobs)


def test_a_tokenizer_from_another_folder(project: Project) -> None:
    project.recipe(models__student={"source": "models/student", "tokenizer": "models/teacher"})
    jobs = project.run("results/tiny/compatibility.json")
    assert [job.split()[0] for job in jobs] == ["download", "import", "compare"]


def test_a_recipe_stands_alone(project: Project) -> None:
    """`--configfile` inherits nothing of config.yaml; `--config` alone changes config.yaml's recipe."""
    project.recipe(evaluation=None, run="other")
    (project.folder / "config.yaml").rename(project.folder / "other.yaml")
    project.recipe()
    jobs = project.stale("--configfile", "other.yaml")
    assert "train sft" in jobs
    assert not any(job.startswith("evaluate") for job in jobs)
    assert project.stale("--config", "results=elsewhere") > jobs
    assert not (project.folder / "elsewhere").exists()


@pytest.mark.slow
def test_reports_plans_and_lint(finished: Project, tmp_path: Path) -> None:
    page = tmp_path / "snakemake.html"
    assert finished.snakemake("--report", str(page), cores="").code == 0
    assert "What the run did" in page.read_text()
    planned = finished.snakemake("plan")
    assert "24 (2 a prompt)" in planned.output
    assert (finished.run_folder / "plan.json").exists()
    lint = finished.snakemake("--lint", cores="").output
    complaints = {line.strip() for line in lint.splitlines() if line.startswith("    *")}
    assert complaints == {"* Specify a conda environment or container for each rule.:"}
