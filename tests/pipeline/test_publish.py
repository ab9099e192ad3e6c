"""Publication is asked for by name, or by the recipe; what is published already is not published again."""

import json
from collections.abc import Iterator

import pytest
from project import Project
from services.writable_hub import WritableHub

pytestmark = pytest.mark.slow

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
TARGETS = {"answers": {"to": "hf://acme/answers"}, "student": {"to": "hf://acme/student", "what": "sft"}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    with WritableHub() as server:
        server.tokens[TOKEN] = set()
        server.writers.add(TOKEN)
        for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield server


def test_a_run_publishes_when_it_is_told_to(project: Project, hub: WritableHub) -> None:
    project.recipe(publish={"targets": TARGETS})
    assert project.run() == [], "nothing leaves the machine unasked"
    assert not hub.requests
    assert set(project.run("publish")) == {"publish to answers", "publish to student"}
    repo = hub.repos["datasets/acme/answers"]
    record = json.loads((project.run_folder / "published/answers.json").read_text())
    assert record["commit"] == repo.refs["main"]
    published = set(repo.commits[record["commit"]])
    assert published == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet", "ledger.json"}
    student = hub.repos["models/acme/student"]
    assert {"README.md", "model.safetensors"} <= set(student.commits[student.refs["main"]])
    assert project.run("publish") == []
    (project.run_folder / "published/answers.json").unlink()
    assert project.run() == []
    project.recipe(publish={"when": "all", "targets": TARGETS})
    assert project.run() == ["publish to answers"]
    assert len(hub.made) == 2, "looked at again, it needs no commit"
    project.recipe(publish={"when": "all", "targets": TARGETS, "remove_local": True})
    assert project.run() == ["remove the completions"]
    assert not list(project.run_folder.glob("completions/*"))
    assert not (project.run_folder / "work/samples").exists()
    removed = json.loads((project.run_folder / "published/removed.json").read_text())
    assert [file["name"] for file in removed["removed"]] == [f"{i:04d}.parquet" for i in range(3)]
    assert removed["published"] == ["hf://acme/answers"]
    assert project.run() == [], "what was removed does not come back"
    said = "".join(path.read_text(errors="replace") for path in project.run_folder.rglob("*.log"))
    assert TOKEN not in said


def test_a_student_that_was_asked_about_the_evaluation_is_published(project: Project, hub: WritableHub) -> None:
    """What publishing is told of the recipe must be one: such a stage needs the evaluation in it."""
    project.recipe(
        publish={"targets": {"student": TARGETS["student"]}},
        stages__sft__held_out="evaluation",
        stages__sft__held_out_every=10,
    )
    assert project.run("publish") == ["train sft", "export sft", "publish to student"]
    student = hub.repos["models/acme/student"]
    assert "results of the run (`recipe.yaml`)" in student.commits[student.refs["main"]]["README.md"].decode()
    metrics = (project.run_folder / "students/sft/metrics.jsonl").read_text()
    assert "held_out_loss" in metrics
    project.recipe(
        publish={"targets": {"student": TARGETS["student"]}},
        stages__sft__held_out="evaluation",
        stages__sft__held_out_every=10,
        report={"title": "another"},
    )
    assert project.stale("publish") == set()
