"""Downloads from a real Hub server on loopback, each in a process of its own as a rule's job is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from services.hub_server import Fault, Hub

ASK = """
import sys
from pathlib import Path
from distill.checkpoints import hub
from distill.errors import explained
with explained():
    print(getattr(hub, sys.argv[1])(sys.argv[2], sys.argv[3] or None, Path(sys.argv[4])))
"""
TOKEN = "hf_SeCrEtSeCrEtSeCrEt"
SMALL = {"config.json": b'{"model_type": "llama"}', "generation_config.json": b"{}", "tokenizer.json": b"{}"}
OLD, NEW = os.urandom(1 << 20), os.urandom(1 << 20)

Ask = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """Runs `download` (or another function of the module) with a clean environment and its own HF_HOME."""

    def run(source: str, revision: str | None = None, *, function: str = "download", **extra: str):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment = inherited | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")} | extra
        arguments = [function, source, revision or "", str(tmp_path / "out")]
        return subprocess.run(
            [sys.executable, "-c", ASK, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def refusal(run: subprocess.CompletedProcess, out: Path) -> str:
    """The one line of a failed run; it left nothing behind."""
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode == 1
    assert len(errors) == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert not [path for path in out.parent.iterdir() if "out" in path.name]
    return errors[0]


def test_a_commit_gives_its_own_bytes(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    first = hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD})
    second = hub.commit("acme/tiny", {**SMALL, "model.safetensors": NEW})
    for commit, content in ((first, OLD), (second, NEW), (first, OLD)):
        run = ask("acme/tiny", commit)
        assert run.stdout.strip() == commit, run.stderr
        assert "warning" not in run.stderr
        assert (tmp_path / "out/model.safetensors").read_bytes() == content
        assert json.loads((tmp_path / "out/source.json").read_text()) == {
            "schema": 1, "source": "acme/tiny", "requested": commit, "revision": commit,
        }  # fmt: skip


def test_the_license_is_the_one_that_the_card_names(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    card = b"---\nlicense: apache-2.0\n---\n# tiny\n"
    commit = hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD, "README.md": card})
    assert ask("acme/tiny", commit).returncode == 0
    assert json.loads((tmp_path / "out/source.json").read_text())["license"] == "apache-2.0"
    hub.faults.append(Fault(f"GET /api/models/acme/tiny/revision/{commit}", status=403, times=9))
    assert ask("acme/tiny", commit).returncode == 0, "what is not told is unknown"


def test_a_branch_is_taken_with_the_advice_to_pin_it(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD})
    side = hub.commit("acme/tiny", {**SMALL, "model.safetensors": NEW}, ref="side")
    run = ask("acme/tiny", "side")
    assert run.stdout.strip() == side
    assert f"warning: acme/tiny is taken at side, which can move: pin it with `revision: {side}`" in run.stderr
    record = json.loads((tmp_path / "out/source.json").read_text())
    assert (record["requested"], record["revision"]) == ("side", side)
    assert "its default branch" in ask("acme/tiny").stderr


def test_only_what_is_read_is_fetched(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    unread = ["model.py", "pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.pth",
              "onnx/model.safetensors", "README.md"]  # fmt: skip
    wanted = ["chat_template.jinja", "additional_chat_templates/tools.jinja", "tokenizer.model",
              "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
              "model.safetensors.index.json"]  # fmt: skip
    commit = hub.commit("acme/tiny", {**SMALL, **{name: name.encode() for name in unread + wanted}})
    assert ask("acme/tiny", commit).returncode == 0
    out = tmp_path / "out"
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {*SMALL, *wanted, "source.json"}
    assert not hub.asked("|".join(unread))
    assert not any(path.is_symlink() for path in out.rglob("*")), "it must outlive the cache"


def test_a_connection_cut_in_a_file_goes_on_from_there(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    written = 10 << 20  # the client writes in pieces of this size
    weights = os.urandom(written + 2000)
    commit = hub.commit("acme/tiny", {**SMALL, "model.safetensors": weights})
    hub.faults.append(Fault("GET /storage", cut=written + 1000))
    run = ask("acme/tiny", commit)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out/model.safetensors").read_bytes() == weights
    assert [request.range for request in hub.asked("GET /storage")] == [None, f"bytes={written}-"]


def test_a_failed_download_goes_on_with_the_files_it_has(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": OLD, "model-00002-of-00002.safetensors": NEW}
    commit = hub.commit("acme/tiny", {**SMALL, **shards})
    done = ask("acme/tiny", commit, function="download_tokenizer")
    assert done.returncode == 0, done.stderr
    (tmp_path / "out").rename(tmp_path / "tokenizer")
    hub.faults.append(Fault("GET /storage", status=500, times=99))
    assert "answered 500" in refusal(ask("acme/tiny", commit), tmp_path / "out")
    hub.faults.clear()
    hub.requests.clear()
    assert ask("acme/tiny", commit).returncode == 0
    assert len(hub.asked("GET /storage")) == 2
    assert not hub.asked("GET .*json")
    for name, content in shards.items():
        assert (tmp_path / "out" / name).read_bytes() == content


def test_a_gated_model_names_the_page_where_access_is_asked_for(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    commit = hub.commit("acme/gated", {**SMALL, "model.safetensors": OLD})
    hub.repos["models/acme/gated"].gated = True
    line = refusal(ask("acme/gated", commit), tmp_path / "out")
    assert f"{hub.url}/acme/gated" in line
    assert "hf auth login" in line
    assert "HF_TOKEN" in line
    hub.tokens[TOKEN] = set()
    line = refusal(ask("acme/gated", commit, HF_TOKEN=TOKEN), tmp_path / "out")
    assert f"no access to it: ask for it at {hub.url}/acme/gated" in line


@pytest.mark.parametrize("logged_in", ["environment", "login"])
def test_a_token_opens_the_model_and_stays_out_of_sight(hub: Hub, ask: Ask, tmp_path: Path, logged_in: str) -> None:
    commit = hub.commit("acme/secret", {**SMALL, "model.safetensors": OLD})
    hub.repos["models/acme/secret"].private = True
    hub.tokens[TOKEN] = {"acme/secret"}
    environment = {"HF_TOKEN": TOKEN} if logged_in == "environment" else {}
    if logged_in == "login":
        (tmp_path / "home").mkdir()
        (tmp_path / "home/token").write_text(TOKEN)
    run = ask("acme/secret", commit, **environment)
    assert run.returncode == 0, run.stderr
    assert TOKEN not in run.stdout + run.stderr
    assert not any(TOKEN.encode() in path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert {request.token for request in hub.asked("storage")} == {None}, "another host saw the token"


def test_a_private_model_or_a_typing_error(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    line = refusal(ask("acme/tinny"), tmp_path / "out")
    assert "acme/tinny is not on" in line
    assert "hf auth login" in line
    hub.tokens[TOKEN] = set()
    assert "hidden from the token" in refusal(ask("acme/tinny", HF_TOKEN=TOKEN), tmp_path / "out")
    assert "refused the token in use" in refusal(ask("acme/tinny", HF_TOKEN="hf_stale"), tmp_path / "out")
    assert "neither a folder nor a Hub id" in refusal(ask("models/that/are/not"), tmp_path / "out")


def test_what_the_hub_refuses_is_explained(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD})
    assert "has no revision v9" in refusal(ask("acme/tiny", "v9"), tmp_path / "out")
    assert "has no revision 000" in refusal(ask("acme/tiny", "0" * 40), tmp_path / "out")
    hub.faults.append(Fault("GET /api", status=403, times=99))
    assert f"(403): see {hub.url}/acme/tiny" in refusal(ask("acme/tiny"), tmp_path / "out")
    line = refusal(ask("acme/tiny", HF_ENDPOINT="http://127.0.0.1:9"), tmp_path / "out")
    assert "no answer from http://127.0.0.1:9 (ConnectError" in line


def test_a_busy_hub_is_asked_again(hub: Hub, ask: Ask) -> None:
    commit = hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD})
    hub.faults += [Fault("HEAD .*safetensors", status=503), Fault("GET .*tree", status=503)]
    run = ask("acme/tiny", commit)
    assert run.returncode == 0, run.stderr


def test_offline_takes_what_the_cache_has_and_says_what_it_lacks(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    commit = hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD})
    offline = {"HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE is set" in refusal(ask("acme/tiny", commit, **offline), tmp_path / "out")
    assert ask("acme/tiny", function="download_tokenizer").returncode == 0
    (tmp_path / "out").rename(tmp_path / "tokenizer")
    assert "not whole, in the cache" in refusal(ask("acme/tiny", commit, **offline), tmp_path / "out")
    assert ask("acme/tiny", commit).returncode == 0
    (tmp_path / "out").rename(tmp_path / "first")
    hub.requests.clear()
    for revision in (commit, None):
        run = ask("acme/tiny", revision, **offline)
        assert run.stdout.strip() == commit, run.stderr
        assert (tmp_path / "out/model.safetensors").read_bytes() == OLD
    assert not hub.requests


def test_pickled_weights_are_refused_and_never_fetched(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    commit = hub.commit("acme/old", {**SMALL, "pytorch_model.bin": OLD, "original/a.pth": OLD})
    line = refusal(ask("acme/old", commit), tmp_path / "out")
    assert "no safetensors" in line
    assert "pytorch_model.bin and 1 more" in line or "original/a.pth and 1 more" in line
    assert "can run code" in line
    assert not hub.asked("bin|pth")
    commit = hub.commit("acme/lora", {"adapter_model.safetensors": OLD})
    assert "no config.json" in refusal(ask("acme/lora", commit), tmp_path / "out")


def test_a_tokenizer_comes_alone_from_the_hub_or_a_folder(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    commit = hub.commit("acme/tiny", {**SMALL, "model.safetensors": OLD})
    run = ask("acme/tiny", commit, function="download_tokenizer")
    assert run.stdout.strip() == commit, run.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*SMALL, "source.json"}
    assert not hub.asked("safetensors")
    folder = tmp_path / "local"
    folder.mkdir()
    for name, content in {**SMALL, "model.safetensors": NEW}.items():
        (folder / name).write_bytes(content)
    assert ask(str(folder), function="download_tokenizer").returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*SMALL, "source.json"}
    (tmp_path / "out").rename(tmp_path / "tokenizer")
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(ask(str(folder), function="download_tokenizer"), tmp_path / "out")
