"""A small stand-in for a Kubernetes cluster: the part of its API that Snakemake's plugin calls, Jobs as processes.

A pod is a process group with an empty folder as its /workdir, the environment of profiles/kubernetes/Containerfile and
the secrets that it names: no file passes from one to another. Requests are answered as an API server would as far as
docs/clusters.md says; anything else is a 404.
"""

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[3]
CONTAINERFILE = ROOT / "profiles/kubernetes/Containerfile"
IMAGE_FOLDER, WORKDIR = "/opt/distill", "/workdir"
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
NATIVE = ("cpu", "memory", "ephemeral-storage")
NOW = "2026-01-01T00:00:00Z"


class Refused(Exception):
    """What the API server answers instead: a status, a reason and a message."""

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass
class Pod:
    """A Job and its one pod."""

    body: dict[str, Any]
    folder: Path
    name: str
    asked: dict[str, float]
    process: subprocess.Popen | None = None
    exit_code: int | None = None
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def job(self) -> str:
        return self.body["metadata"]["name"]

    @property
    def command(self) -> str:
        return self.body["spec"]["template"]["spec"]["containers"][0]["args"][-1]

    @property
    def rules(self) -> list[str]:
        """The rules that it runs, from Snakemake's command."""
        found = re.search(r"--allowed-rules ((?:\w+ )+)", self.command)
        return found[1].split() if found else []


class Cluster:
    """One namespace, one node. `image`: settings of a container beside those of the Containerfile."""

    namespace = "distill"

    def __init__(self, folder: Path, capacity: dict[str, float], image: dict[str, str] | None = None):
        self.folder, self.capacity, self.image = folder, capacity, image or {}
        self.token, self.secrets = uuid.uuid4().hex, {}
        self.pods: dict[str, Pod] = {}
        self.gone: list[Pod] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        for pod in self.pods.values():
            self._end(pod)

    @property
    def kubeconfig(self) -> Path:
        """What a user's ~/.kube/config would be."""
        cluster = {"server": f"http://127.0.0.1:{self.server.server_port}"}
        file = self.folder / "kubeconfig"
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": self.token}}],
                }
            )
        )
        return file

    @property
    def all(self) -> list[Pod]:
        """Every pod that there was, in the order that jobs came."""
        return [*self.gone, *self.pods.values()]

    def running(self, rule: str) -> Pod | None:
        self.look()
        return next((pod for pod in self.pods.values() if rule in pod.rules and pod.exit_code is None), None)

    def kill(self, pod: Pod) -> None:
        """What a node that goes down does to a pod."""
        self._end(pod)

    # What the API answers ----------------------------------------------------------------------------------------

    def create_secret(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        if name in self.secrets:
            raise Refused(409, "AlreadyExists", f'secrets "{name}" already exists')
        self.secrets[name] = {key: base64.b64decode(value).decode() for key, value in body["data"].items()}
        return body

    def delete_secret(self, name: str) -> dict[str, Any]:
        if self.secrets.pop(name, None) is None:
            raise Refused(404, "NotFound", f'secrets "{name}" not found')
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def create_job(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            raise Refused(422, "Invalid", f"metadata.name: {name!r} is no DNS label")
        if name in self.pods:
            raise Refused(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        spec = body["spec"]["template"]["spec"]
        if spec["restartPolicy"] not in ("Never", "OnFailure"):
            raise Refused(422, "Invalid", "spec.template.spec.restartPolicy: Never or OnFailure")
        (container,) = spec["containers"]
        asked = _asked(container.get("resources", {}))
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise Refused(422, "Invalid", f"volumeMounts: {mount['name']} is no volume")
        with self.lock:
            self.pods[name] = Pod(body, self.folder / name, f"{name}-{uuid.uuid4().hex[:5]}", asked)
            self._schedule()
        return self.job(name)

    def job(self, name: str) -> dict[str, Any]:
        self.look()
        pod = self._pod(name)
        status = {"active": 1}
        if pod.exit_code is not None:
            status = {"failed": 1} if pod.exit_code else {"succeeded": 1}
        return {"apiVersion": "batch/v1", "kind": "Job", **pod.body, "status": status}

    def list_pods(self, selector: str) -> dict[str, Any]:
        self.look()
        job = selector.removeprefix("job-name=")
        items = [self._as_pod(pod) for pod in self.pods.values() if pod.job == job]
        return {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}

    def log(self, name: str, previous: bool) -> str:
        pod = next((pod for pod in self.pods.values() if pod.name == name), None)
        if pod is None:
            raise Refused(404, "NotFound", f'pods "{name}" not found')
        if previous:  # no container of a Job with backoffLimit 0 starts twice
            raise Refused(400, "BadRequest", f'previous terminated container "snakemake" in pod "{name}" not found')
        return self.words(pod)

    def words(self, pod: Pod) -> str:
        file = pod.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    def delete_pod(self, name: str) -> dict[str, Any]:
        pod = next((pod for pod in self.pods.values() if pod.name == name), None)
        if pod is None:
            raise Refused(404, "NotFound", f'pods "{name}" not found')
        self._end(pod)
        return self._as_pod(pod)

    def delete_job(self, name: str) -> dict[str, Any]:
        pod = self._pod(name)
        self._end(pod)
        with self.lock:
            self.gone.append(self.pods.pop(name))
            self._schedule()
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    # Pods --------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Notice what has ended, and start what there is room for now."""
        with self.lock:
            for pod in self.pods.values():
                if pod.process and pod.exit_code is None and (code := pod.process.poll()) is not None:
                    pod.exit_code = code if code >= 0 else 128 - code
                    _kill(pod)
            self._schedule()

    def _pod(self, job: str) -> Pod:
        if job not in self.pods:
            raise Refused(404, "NotFound", f'jobs.batch "{job}" not found')
        return self.pods[job]

    def _schedule(self) -> None:
        """Start pods in the order that they came, as long as what they request is free; others are pending."""
        living = [pod for pod in self.pods.values() if pod.process and pod.exit_code is None]
        free = {name: have - sum(pod.asked.get(name, 0) for pod in living) for name, have in self.capacity.items()}
        for pod in self.pods.values():
            if pod.process is None and all(free.get(name, 0) >= wanted for name, wanted in pod.asked.items()):
                self._start(pod)
                free = {name: left - pod.asked.get(name, 0) for name, left in free.items()}

    def _start(self, pod: Pod) -> None:
        container = pod.body["spec"]["template"]["spec"]["containers"][0]
        for part in ("workdir", "home", "tmp"):
            (pod.folder / part).mkdir(parents=True)
        settings = self._environment(pod)
        for variable in container.get("env", []):
            key = variable["valueFrom"]["secretKeyRef"]
            settings[variable["name"]] = self.secrets[key["name"]][key["key"]]
        with (pod.folder / "log").open("wb") as log:
            pod.process = subprocess.Popen(
                [*container["command"], *container["args"]], cwd=pod.folder / "workdir", env=settings,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _environment(self, pod: Pod) -> dict[str, str]:
        """The image's, by its ENV lines, with its folders where they are here."""
        settings = {"HOME": str(pod.folder / "home"), "TMPDIR": str(pod.folder / "tmp"), "POD_UID": pod.uid}
        plain = os.environ["PATH"]
        for line in CONTAINERFILE.read_text().replace("\\\n", " ").splitlines():
            if line.startswith("ENV "):
                for part in shlex.split(line)[1:]:
                    name, _, value = part.partition("=")
                    value = value.replace("${PATH}", plain).replace(f"{IMAGE_FOLDER}/.venv", sys.prefix)
                    value = value.replace(IMAGE_FOLDER, str(ROOT)).replace(WORKDIR, str(pod.folder / "workdir"))
                    settings[name] = value
        return settings | self.image

    def _end(self, pod: Pod) -> None:
        _kill(pod)
        if pod.process and pod.exit_code is None:
            pod.process.wait()
            pod.exit_code = 137

    def _as_pod(self, pod: Pod) -> dict[str, Any]:
        statuses = None
        if pod.process:
            state: dict[str, Any] = {"running": {"startedAt": NOW}}
            if pod.exit_code is not None:
                state = {"terminated": {"exitCode": pod.exit_code, "finishedAt": NOW}}
            named = {"name": "snakemake", "image": "-", "imageID": "-", "ready": pod.exit_code is None}
            statuses = [named | {"restartCount": 0, "state": state}]
        phase = "Pending" if pod.process is None else "Running"
        if pod.exit_code is not None:
            phase = "Failed" if pod.exit_code else "Succeeded"
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name, "labels": {"job-name": pod.job}},
            "spec": pod.body["spec"]["template"]["spec"],
            "status": {"phase": phase, "containerStatuses": statuses},
        }


def _kill(pod: Pod) -> None:
    """End all processes of a pod, those too that left its group, as the end of a container does."""
    mark = f"POD_UID={pod.uid}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:  # it is gone, or somebody else's
                continue


def _quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * UNITS[unit]


def _asked(resources: dict[str, Any]) -> dict[str, float]:
    """What a container requests; refused where an API server would refuse it."""
    requests, limits = ({k: _quantity(v) for k, v in (resources.get(p) or {}).items()} for p in ("requests", "limits"))
    for name, wanted in requests.items():
        if name not in NATIVE and name not in limits:
            raise Refused(422, "Invalid", f"limits[{name}]: Limit must be set for non overcommitable resources")
        if wanted > limits.get(name, wanted) or (name not in NATIVE and wanted != limits[name]):
            raise Refused(422, "Invalid", f"requests[{name}]: must be at most (others: exactly) its limit")
    return requests


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    core, batch = f"/api/v1/namespaces/{cluster.namespace}", f"/apis/batch/v1/namespaces/{cluster.namespace}"
    name = r"([^/]+)"
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", f"{core}/secrets", lambda body, asked: cluster.create_secret(body)),
        ("DELETE", f"{core}/secrets/{name}", lambda body, asked, found: cluster.delete_secret(found)),
        ("POST", f"{batch}/jobs", lambda body, asked: cluster.create_job(body)),
        ("GET", f"{batch}/jobs/{name}/status", lambda body, asked, found: cluster.job(found)),
        ("DELETE", f"{batch}/jobs/{name}", lambda body, asked, found: cluster.delete_job(found)),
        ("GET", f"{core}/pods", lambda body, asked: cluster.list_pods(asked.get("labelSelector", ""))),
        ("GET", f"{core}/pods/{name}/log", lambda body, asked, found: cluster.log(found, "previous" in asked)),
        ("DELETE", f"{core}/pods/{name}", lambda body, asked, found: cluster.delete_pod(found)),
    ]  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            try:
                status, found = 200, self.route(body)
            except Refused as refused:
                status = refused.status
                found = {"kind": "Status", "status": "Failure", "message": str(refused), "reason": refused.reason}
            text = found if isinstance(found, str) else json.dumps(found)
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def route(self, body: dict[str, Any]) -> Any:
            if self.headers.get("Authorization") != f"Bearer {cluster.token}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            parts = urlsplit(self.path)
            asked = {
                key: values[0].lower() if key == "previous" else values[0]
                for key, values in parse_qs(parts.query).items()
            }
            for method, pattern, action in routes:
                if method == self.command and (match := re.fullmatch(pattern, parts.path)):
                    return action(body, asked, *match.groups())
            raise Refused(404, "NotFound", f"{self.command} {parts.path}: this cluster has no such thing")

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler
