"""A small Hub on loopback: the read side of the protocol that `huggingface_hub` speaks.

    with Hub() as hub:
        first = hub.commit("acme/tiny", {"config.json": b"{}", "model.safetensors": weights})
        subprocess.run([...], env={"HF_ENDPOINT": hub.url, "HF_HOME": ...})

Routes, with K = models | datasets:

    GET       /api/K/{repo}[/revision/{rev}]        commit and file names
    GET       /api/K/{repo}/tree/{rev}[/{folder}]   sizes and hashes
    POST      /api/K/{repo}/paths-info/{rev}        the same for some paths
    GET HEAD  /[datasets/]{repo}/resolve/{rev}/{path}
    GET HEAD  /storage/{sha256}                     on another host name: where large files really lie

As on the real one: a private repository does not exist for who may not see it (401 without a token, 404 with
one), a gated one is listed for everybody and its files are refused (401, 403), a token that nobody issued is
refused even for public files, and a large file is a redirect to another host, which must not see the token.
"""

import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".parquet")


@dataclass
class Repo:
    """Commits are whole trees; `refs` names them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that `match` finds in `METHOD /path` and the start of the body.

    Either the answer is `status` (with `retry_after`), or its body ends after `cut` bytes and the connection is
    closed; or it is closed before the request is served (`dropped`) or after (`lost`). `meanwhile` is called first.
    """

    match: str
    times: int = 1
    status: int | None = None
    retry_after: str | None = None
    cut: int | None = None
    dropped: bool = False
    lost: bool = False
    meanwhile: Callable[[], object] | None = None


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    line: str
    host: str
    token: str | None
    range: str | None
    body: bytes


class Refused(Exception):
    """An answer that is no success: status, the client's code for it, and a message."""


class Hub:
    """The server, its repositories, who may see them, its faults, and what it was asked."""

    def __init__(self) -> None:
        self.routes = list(ROUTES)
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}  # token → the private and gated repositories it may read
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.is_up = False
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_url = f"http://localhost:{self._server.server_port}/storage"

    def __enter__(self) -> "Hub":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def _listen(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), _handler(self))

    def up(self) -> None:
        """Serve, on the port of before."""
        if self.is_up:
            return
        if self._server.fileno() < 0:
            self._listen(self._server.server_port)
        self.is_up = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        """Be gone: connections end, new ones are refused; repositories stay."""
        if self.is_up:
            self.is_up = False
            self._server.shutdown()
            self._server.server_close()

    def commit(self, repo: str, files: dict[str, bytes], *, ref: str = "main", kind: str = "models") -> str:
        """Add a commit whose tree is `files`, let `ref` name it, and return it."""
        it = self.repos.setdefault(f"{kind}/{repo}", Repo())
        seed = json.dumps([repo, len(it.commits), sorted(files)])
        commit = hashlib.sha1(seed.encode()).hexdigest()
        it.commits[commit] = dict(files)
        it.refs[ref] = commit
        return commit

    def offered(self, kind: str, repo: str, commit: str, sha: str) -> dict[str, str]:
        """Headers that tell of another way to a large file."""
        return {}

    def asked(self, match: str) -> list[Request]:
        """The requests so far in whose line `match` is found."""
        return [request for request in self.requests if re.search(match, request.line)]

    def fault(self, line: str) -> Fault:
        """The fault that hits this request, used up by it; one that does nothing when there is none."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return Fault("")

    def readable(self, key: str, token: str | None, *, files: bool) -> Repo:
        """The repository, for who may see it (and read its files)."""
        if token is not None and token not in self.tokens:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        repo = self.repos.get(key)
        allowed = key.partition("/")[2] in self.tokens.get(token or "", set())
        if repo is None or (repo.private and not allowed):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if files and repo.gated and not allowed:
            raise Refused(403 if token else 401, "GatedRepo", "Access to this model is restricted.")
        return repo


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left without waiting for its answer is none of our errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """A handler class bound to `hub`."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean: `Hub.requests` is the log."""

    def do_GET(self) -> None:
        line, url = f"{self.command} {self.path}", urlsplit(self.path)
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        token = credentials if scheme == "Bearer" else None
        self.body = self.read_body()
        self.hub.requests.append(Request(line, self.headers["Host"], token, self.headers.get("Range"), self.body[:500]))
        self.token, self.fault = token, self.hub.fault(f"{line} {self.body[:500]!r}")
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            if self.fault.meanwhile:
                self.fault.meanwhile()
            if self.fault.dropped or not self.hub.is_up:
                return self.close()
            if self.fault.status:
                raise Refused(self.fault.status, None, "injected")
            for pattern, answer in self.hub.routes:
                if found := re.fullmatch(pattern, url.path):
                    return answer(self, **{k: unquote(v) if v else v for k, v in found.groupdict().items()})
            raise Refused(404, None, f"no route for {line}")
        except Refused as refused:
            status, code, message = refused.args
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            headers |= {"Retry-After": self.fault.retry_after} if self.fault.retry_after else {}
            self.send_json({"error": message}, status, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def read_body(self) -> bytes:
        """All that the client sends, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def close(self) -> None:
        """End the connection without a word."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def info(self, kind: str, repo: str, rev: str | None = None) -> None:
        it = self.hub.readable(f"{kind}/{repo}", self.token, files=False)
        commit, files = find(it, rev or "main")
        self.send_json({
            "id": repo, "sha": commit, "private": it.private, "gated": "manual" if it.gated else False,
            "tags": [], "downloads": 0, "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(files)], "cardData": card(files.get("README.md", b"")),
        })  # fmt: skip

    def tree(self, kind: str, repo: str, rev: str, folder: str | None = None) -> None:
        it = self.hub.readable(f"{kind}/{repo}", self.token, files=False)
        _, files = find(it, rev)
        above = f"{folder.strip('/')}/" if folder else ""
        entries = {}
        for path, content in sorted(files.items()):
            if not path.startswith(above):
                continue
            parts = path.removeprefix(above).split("/")
            if self.query.get("recursive", "").lower() != "true":
                parts = parts[:1] if len(parts) == 1 else [parts[0], ""]
            for depth in range(1, len(parts)):
                parent = above + "/".join(parts[:depth])
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            if parts[-1]:
                entries[path] = entry(path, content)
        if above and not entries:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist at {rev}")
        self.send_json(list(entries.values()))

    def paths_info(self, kind: str, repo: str, rev: str) -> None:
        it = self.hub.readable(f"{kind}/{repo}", self.token, files=False)
        _, files = find(it, rev)
        text = self.body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        self.send_json([entry(path, files[path]) for path in paths if path in files])

    def resolve(self, repo: str, rev: str, path: str, kind: str | None = None) -> None:
        it = self.hub.readable(f"{kind or 'models'}/{repo}", self.token, files=True)
        commit, files = find(it, rev)
        if path not in files:
            raise Refused(404, "EntryNotFound", f"{path} does not exist at {rev}")
        content, headers = files[path], {"X-Repo-Commit": commit, "ETag": f'"{oid(files[path])}"'}
        if not path.endswith(LARGE):
            return self.send_content(content, headers)
        sha = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        headers |= self.hub.offered(kind or "models", repo, commit, sha)
        return self.send(302, b"", headers | {"Location": f"{self.hub.storage_url}/{sha}"})

    def storage(self, sha: str) -> None:
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for path, content in files.items():
                    if path.endswith(LARGE) and hashlib.sha256(content).hexdigest() == sha:
                        return self.send_content(content, {"ETag": f'"{sha}"'})
        raise Refused(404, None, "no such object")

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """All of `content`, or the part that the Range header names (`bytes=a-`, `bytes=a-b`, `bytes=-n`)."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        size = len(content)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.send(200, content, headers)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first >= size:
            return self.send(416, b"", {"Content-Range": f"bytes */{size}"})
        part = {"Content-Range": f"bytes {first}-{last}/{size}"}
        return self.send(206, content[first : last + 1], headers | part)

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if self.fault.lost:
            self.close()
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: self.fault.cut])
        if self.fault.cut is not None:  # promised more than this
            self.close()


def find(repo: Repo, rev: str) -> tuple[str, dict[str, bytes]]:
    """The commit that a branch, tag or commit hash names, and its tree."""
    commit = repo.refs.get(rev.removeprefix("refs/heads/"), rev)
    if commit not in repo.commits:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
    return commit, repo.commits[commit]


def card(readme: bytes) -> dict[str, Any] | None:
    """The front matter of a README.md."""
    parts = readme.decode().split("---\n")
    return yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None


def oid(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in a listing."""
    item = {"type": "file", "path": path, "size": len(content), "oid": oid(content)}
    if path.endswith(LARGE):
        sha = hashlib.sha256(content).hexdigest()
        item["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
    return item


REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
ROUTES = [
    (API, _Handler.info),
    (rf"{API}/revision/(?P<rev>[^/]+)", _Handler.info),
    (rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (rf"{API}/paths-info/(?P<rev>[^/]+)", _Handler.paths_info),
    (rf"/(?:(?P<kind>datasets)/)?{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (r"/storage/(?P<sha>[0-9a-f]{64})", _Handler.storage),
]
