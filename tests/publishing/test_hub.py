"""What is the Hub's alone: visibility, branches, large files, a student's card, tokens."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, constants, snapshot_download
from places import TOKEN, Place, at_hand
from places import hub as hub_place

from distill.config.reading import load_recipe
from distill.errors import DistillError
from distill.publishing.card import model_card

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "run": "demo",
    "models": {"teacher": {"source": "acme/large", "revision": "ab" * 20}, "student": {"source": "acme/small"}},
    "prompts": {"source": "acme/questions"},
    "stages": {"sft": {"init": "student", "steps": 5}, "more": {"init": "sft", "epochs": 2, "data": "original"}},
    "publish": {"targets": {"model": {"to": "hf://acme/student", "what": "more"}}},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def hub() -> Iterator[Place]:
    with hub_place() as place, at_hand(place):
        yield place


def test_a_repository_is_private_unless_asked(hub: Place, folder: Path, tmp_path: Path) -> None:
    hub.publish(folder, tmp_path / "out.json")
    assert hub.server.repos["datasets/acme/answers"].private
    hub.publish(folder, tmp_path / "out.json", to="hf://acme/open", private=False)
    assert not hub.server.repos["datasets/acme/open"].private


def test_a_public_repository_is_refused_while_the_recipe_says_private(hub: Place, folder: Path, tmp_path: Path) -> None:
    hub.server.commit("acme/open", {"README.md": b""}, kind="datasets")
    with pytest.raises(DistillError, match=r"acme/open is public, and this target says private.*private: false"):
        hub.publish(folder, tmp_path / "out.json", to="hf://acme/open")
    assert not hub.uploads()


def test_a_branch_is_made_and_main_stays(hub: Place, folder: Path, tmp_path: Path) -> None:
    record = hub.publish(folder, tmp_path / "out.json", branch="v2")
    repo = hub.server.repos["datasets/acme/answers"]
    assert repo.refs["v2"] == record["commit"]
    assert "README.md" not in repo.commits[repo.refs["main"]]


def test_a_large_file_goes_in_parts(hub: Place, folder: Path, tmp_path: Path) -> None:
    hub.server.part_size = 1000
    content = os.urandom(4500)
    (folder / "data/train-00000-of-00002.parquet").write_bytes(content)
    hub.fail(r"PUT /storage/\w+/3", dropped=True)
    record = hub.publish(folder, tmp_path / "out.json")
    assert hub.files(record)["data/train-00000-of-00002.parquet"] == content
    assert len([line for line in hub.uploads() if "/3 " in line]) == 2, "one part twice, the others once"


def test_what_others_put_there_stays(hub: Place, folder: Path, tmp_path: Path) -> None:
    hub.publish(folder, tmp_path / "out.json")
    repo = hub.server.repos["datasets/acme/answers"]
    hub.server.commit("acme/answers", {**repo.commits[repo.refs["main"]], "NOTES.md": b"theirs"}, kind="datasets")
    (folder / "ledger.json").write_text('{"schema": 1}')
    assert hub.files(hub.publish(folder, tmp_path / "out.json"))["NOTES.md"] == b"theirs"


def test_a_student_goes_to_a_model_repository_with_its_card(hub: Place, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    target = recipe.publish.targets["model"]
    (tmp_path / "export").mkdir()
    (tmp_path / "export/config.json").write_text("{}")
    (tmp_path / "export/model.safetensors").write_bytes(b"weights")
    card = model_card(recipe, "more", "acme/student", None, {"student": "apache-2.0", "teacher": None})
    hub.publish(tmp_path / "export", tmp_path / "out.json", card=card, **target.model_dump())
    repo = hub.server.repos["models/acme/student"]
    tree = repo.commits[repo.refs["main"]]
    assert set(tree) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    front = yaml.safe_load(tree["README.md"].decode().split("---\n")[1])
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["distillation"],
                     "base_model": "acme/small", "datasets": ["acme/questions"]}  # fmt: skip
    text = tree["README.md"].decode()
    assert "`acme/large` at revision `abab" in text
    assert "sft (sft on generated answers, 5 steps) → more (sft on original answers, 2 epochs)" in text
    assert "unknown: the own card of the student before says apache-2.0, the teacher's nothing" in text


def test_the_card_of_a_student_without_a_teacher_names_its_data() -> None:
    recipe = load_recipe({
        "run": "r",
        "models": {"student": {"source": "acme/small"}},
        "stages": {"sft": {"init": "student", "steps": 5, "data": [{"source": "acme/questions"}]}},
    })  # fmt: skip
    card = model_card(recipe, "sft", "acme/student", None, {"student": "mit"})
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["base_model"], front["datasets"]) == ("acme/small", ["acme/questions"])
    assert "unknown: the own card of the student before says mit; see it, and that of the data" in card
    assert "sft (sft on acme/questions answers, 5 steps)" in card
    assert "teacher" not in card


@pytest.fixture
def xet(tmp_path: Path) -> Iterator[Place]:
    """A Hub whose large files go where `hf_xet` puts them, which is a folder here."""
    pytest.importorskip("hf_xet")
    (tmp_path / "xet").mkdir()
    with hub_place(tmp_path / "xet") as place, at_hand(place):
        yield place


def test_by_xet_arrives_what_lies_here_and_is_sent_once(xet: Place, folder: Path, tmp_path: Path) -> None:
    content = os.urandom(300_000) * 2
    (folder / "data/train-00000-of-00002.parquet").write_bytes(content)
    record = xet.publish(folder, tmp_path / "out.json")
    assert xet.files(record)["data/train-00000-of-00002.parquet"] == content
    assert xet.files(record)["data/train-00001-of-00002.parquet"] == b"PAR1 shard 1" * 50
    assert not xet.server.asked("/lfs/"), "it went by Xet"
    tokens = len(xet.server.asked("xet-write-token"))
    assert xet.publish(folder, tmp_path / "out.json")["sent"] == []
    assert len(xet.server.asked("xet-write-token")) == tokens > 0
    (folder / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1 another shard" * 40)
    again = xet.publish(folder, tmp_path / "out.json")
    assert again["sent"] == ["data/train-00001-of-00002.parquet"]
    assert xet.files(again)["data/train-00001-of-00002.parquet"] == b"PAR1 another shard" * 40
    assert xet.commits() == 2


@pytest.mark.parametrize(
    ("match", "fault"),
    [
        ("xet-write-token", {"status": 503, "times": 2}),
        ("xet-write-token", {"dropped": True}),
        ("POST .*/commit/", {"lost": True}),
        ("POST .*/commit/", {"status": 503}),
    ],
)
def test_by_xet_a_fault_ends_in_one_commit(
    xet: Place, folder: Path, tmp_path: Path, match: str, fault: dict[str, object]
) -> None:
    xet.fail(match, **fault)
    record = xet.publish(folder, tmp_path / "out.json")
    assert xet.files(record)["data/train-00001-of-00002.parquet"] == b"PAR1 shard 1" * 50
    assert xet.commits() == 1


def test_by_xet_it_comes_back(xet: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"{xet.server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", where)  # as it was when the client was imported
    record = xet.publish(folder, tmp_path / "out.json")
    xet.fail("xet-read-token", status=503)
    wanted = {"repo_type": "dataset", "revision": record["commit"], "token": TOKEN}
    got = Path(snapshot_download("acme/answers", cache_dir=tmp_path / "cache", **wanted))
    assert {name: (got / name).read_bytes() for name in xet.files(record)} == xet.files(record)
    assert xet.server.asked("xet-read-token")
    assert not xet.server.asked("GET /storage/")


@pytest.mark.parametrize("status", [401, 403])
def test_by_xet_a_refused_token_is_explained(xet: Place, folder: Path, tmp_path: Path, status: int) -> None:
    xet.fail("xet-write-token", status=status, times=99)
    with pytest.raises(DistillError, match="token in use") as refused:
        xet.publish(folder, tmp_path / "out.json")
    assert TOKEN not in str(refused.value)
    assert xet.commits() == 0
    xet.server.faults.clear()
    xet.publish(folder, tmp_path / "out.json")
    assert xet.commits() == 1


def test_what_the_xet_transfer_raises_is_retried_or_explained(
    hub: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its storage has no server here: what it raises is taken from its own package."""
    hf_xet = pytest.importorskip("hf_xet")
    create, troubles = HfApi.create_commit, [RuntimeError("network"), ConnectionError("reset")]

    def troubled(self: HfApi, *args: object, **options: object) -> object:
        if troubles:
            raise troubles.pop()
        return create(self, *args, **options)

    monkeypatch.setattr(HfApi, "create_commit", troubled)
    assert hub.files(hub.publish(folder, tmp_path / "out.json"))["ledger.json"] == b"{}\n"
    assert hub.commits() == 1
    troubles.append(hf_xet.XetAuthenticationError("no"))
    (folder / "ledger.json").write_text("{ }")
    with pytest.raises(DistillError, match="forbids the token in use to write"):
        hub.publish(folder, tmp_path / "out.json")


def test_the_script_says_in_one_line_what_to_do_and_never_the_token(hub: Place, folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE | {"publish": {"targets": {"here": {"to": "hf://acme/answers"}}}})
    command = [sys.executable, ROOT / "scripts/publish_to.py", "--folder", folder, "--where", "here",
               "--recipe", recipe.model_dump_json(), "--sources", "{}", "--out", tmp_path / "out.json"]  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def run(**extra: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=clean | ours | extra, capture_output=True, text=True, timeout=60)

    refused = run()
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "without a token (401): log in with `hf auth login`, or set HF_TOKEN" in line
    assert "Traceback" not in refused.stderr
    done = run(HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 files sent" in done.stdout
    assert TOKEN not in done.stdout + done.stderr + (tmp_path / "out.json").read_text()
    assert json.loads((tmp_path / "out.json").read_text())["commit"]
    stale = run(HF_TOKEN="hf_stale")
    assert "refused the token in use" in stale.stderr
    assert "hf_stale" not in stale.stderr
