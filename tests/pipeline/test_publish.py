"""Publication is asked for by name, or by the recipe; what is published already is not published again."""

import json

import pytest
from project import Project
from services.writable_hub import WritableHub

pytestmark = pytest.mark.slow

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
TARGETS = {"answers": {"to": "hf://acme/answers"}, "student": {"to": "hf://acme/student", "what": "sft"}}


def test_a_run_publishes_when_it_is_told_to(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with WritableHub() as hub:
        hub.tokens[TOKEN] = set()
        hub.writers.add(TOKEN)
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
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
