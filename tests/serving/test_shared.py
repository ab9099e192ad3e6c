"""The server that batches share: one, the right one, and gone when it should be."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from serving import until

from distill.config.generation import ONE_DEVICE, EngineMesh
from distill.errors import DistillError
from distill.serving import shared
from distill.serving.shared import Server, ensure_server, files_of, leave_servers

SETTINGS = {"slots": 4, "max_length": 64, "idle_seconds": 30}


def gone(server: Server) -> bool:
    """No such process, or one that has ended and waits for its parent, this test, to notice."""
    try:
        return Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_many_clients_one_server_until_it_is_told_to_go(params: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = set(pool.map(lambda _: ensure_server(params, **SETTINGS), range(4)))
    assert len(servers) == 1
    (server,) = servers
    assert ensure_server(params, **SETTINGS) == server
    files = files_of(params, 4, 64)
    assert files.info.stat().st_mode & 0o777 == 0o600
    assert files.info.parent.stat().st_mode & 0o777 == 0o700
    assert httpx2.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
    assert os.getsid(server.pid) != os.getsid(0)
    other = ensure_server(params, **SETTINGS | {"slots": 2})
    assert other.pid != server.pid
    until(lambda: gone(server), 1)  # else an idle server with other settings holds the device
    os.kill(other.pid, signal.SIGKILL)
    until(lambda: files_of(params, 2, 64).read() is None)
    assert files_of(params, 2, 64).info.exists(), "less is proved"
    third = ensure_server(params, **SETTINGS | {"slots": 2})
    assert third.pid != other.pid
    leave_servers()
    until(lambda: gone(third), 1)
    assert not list(files.info.parent.glob("*.json"))


@pytest.mark.slow
def test_a_server_over_two_devices(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = EngineMesh(tensor=2)
    with pytest.raises(DistillError, match="needs 2 devices, there are 1: make it smaller"):
        ensure_server(params, **SETTINGS, mesh=two)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    body = {"prompt": [9, 10], "max_tokens": 20, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answers = []
    for mesh in (two, EngineMesh()):
        server = ensure_server(params, **SETTINGS, mesh=mesh)
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
            answers.append(client.post("/v1/completions", json=body).json()["choices"][0]["token_ids"])
            told = client.get("/v1/models").json()["data"][0]["distill"]
            assert told["mesh"] == mesh.model_dump()
            assert told["kernels"] == ("c" if mesh == ONE_DEVICE and shutil.which("cc") else "xla")
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_an_idle_server_leaves_and_a_busy_one_stays(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "BUSY", 0.3)
    server = ensure_server(params, **SETTINGS | {"idle_seconds": 1, "max_length": 256})
    body = {"prompt": [7, 8], "max_tokens": 250, "ignore_eos": True, "n": 60}
    headers = {"Authorization": f"Bearer {server.token}"}
    with (
        httpx2.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.post, "/v1/completions", json=body)
        until(lambda: "distill_slots_busy 4.0" in client.get("/metrics").text)
        assert client.post("/leave").status_code == 409
        leave_servers()
        assert len(answer.result().json()["choices"]) == 60
    until(lambda: gone(server), 15)
    assert not files_of(params, 4, 256).info.exists()


def test_who_cannot_start_says_why(params: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(params, tmp_path / "broken")
    shutil.rmtree(broken / "weights")
    with pytest.raises(DistillError, match=r"the generation server did not start: .*weights cannot be restored"):
        ensure_server(broken, **SETTINGS)
    with pytest.raises(DistillError, match=r"did not start: .*max_target_length is 5000, the model's context is 2048"):
        ensure_server(params, **SETTINGS | {"max_length": 5000})


def test_the_key_covers_model_settings_code_and_node(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Path(shared.PACKAGE).parents[1]
    copy = tmp_path / "project"
    for part in ("lib/distill", "scripts"):
        shutil.copytree(project / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(shared, "PACKAGE", copy / "lib/distill")
    monkeypatch.setattr(shared, "SCRIPT", copy / "scripts/serve.py")
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(params / "model.json", model)
    keys = [files_of(params, 4, 64)]
    assert files_of(model, 4, 64) == keys[0], "the same model elsewhere is the same"
    keys += [files_of(params, 5, 64), files_of(params, 4, 65)]
    (model / "model.json").write_text(json.dumps(json.loads((model / "model.json").read_text()) | {"digest": "x"}))
    keys.append(files_of(model, 4, 64))
    for name, value in (
        ("SLURM_JOB_ID", "1"), ("XLA_FLAGS", "--x"), ("CUDA_VISIBLE_DEVICES", "1"), ("DISTILL_KERNELS", "off"),
        ("CC", "clang"),
    ):  # fmt: skip
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            keys.append(files_of(params, 4, 64))
    for file in ("lib/distill/generation/engine.py", "lib/distill/native/kernel.h", "scripts/serve.py"):
        with (copy / file).open("a") as text:
            text.write("\nCHANGED = 1\n")
        keys.append(files_of(params, 4, 64))
    assert len({key.info for key in keys}) == len(keys)


def test_a_folder_that_others_can_open_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "runtime/distill").mkdir(mode=0o755)
    with pytest.raises(DistillError, match="must be a folder that you alone can open"):
        shared.folder()
    (tmp_path / "runtime/distill").rmdir()
    (tmp_path / "runtime/distill").symlink_to(tmp_path)
    with pytest.raises(DistillError, match="must be a folder that you alone can open"):
        shared.folder()
