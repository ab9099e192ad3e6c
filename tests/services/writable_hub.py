"""The Hub's write side: repositories, uploads to its storage, commits.

    with WritableHub() as hub:
        hub.tokens[TOKEN] = set(); hub.writers.add(TOKEN)

Routes beside those of `hub_server`, with K = models | datasets:

    POST  /api/repos/create
    GET   /api/whoami-v2
    POST  /api/validate-yaml                                  the front matter of a README.md
    GET   /api/K/{repo}/refs
    POST  /api/K/{repo}/branch/{branch}
    POST  /api/K/{repo}/preupload/{rev}                       regular or lfs, by name
    POST  /[datasets/]{repo}.git/info/lfs/objects/batch       where to upload what the storage lacks
    PUT   /storage/{sha256}[/{part}]                          in one piece, or in parts of `part_size`
    POST  /storage/{sha256}/complete, /storage/{sha256}/verify
    POST  /api/K/{repo}/commit/{branch}                       a header and operations, one JSON a line
    GET   /api/K/{repo}/xet-{read|write}-token/{rev}          where Xet's storage is, a folder here: `xet`

A commit whose `parentCommit` is no longer the head is refused with 412. Who may not write gets 401 without a
token and 403 with one.
"""

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from services.hub_server import API, LARGE, REPO, Hub, Refused, Repo, find, oid


class WritableHub(Hub):
    """A Hub that takes commits; `writers` are the tokens that may make them, `storage` has the large files.

    xet: a folder in which `hf_xet` keeps them by itself, in place of the Hub's storage of that kind; its client does
    all but talk to that storage over HTTP.
    """

    def __init__(self, part_size: int = 1 << 30, xet: Path | None = None) -> None:
        super().__init__()
        self.writers: set[str] = set()
        self.storage: dict[str, bytes] = {}
        self.made: list[tuple[str, str]] = []  # repository and commit of what clients committed
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_size = part_size
        self.xet = xet
        self.routes = WRITES + self.routes

    def offered(self, kind: str, repo: str, commit: str, sha: str) -> dict[str, str]:
        """Where Xet has a file, if it has it."""
        there = dict(xet_files(self.xet)) if self.xet else {}
        if sha not in there:
            return {}
        route = f"{self.url}/api/{kind}/{repo}/xet-read-token/{commit}"
        return {"X-Xet-Hash": there[sha][0], "X-Xet-Refresh-Route": route}


def writing(it: Any, kind: str, repo: str) -> Repo:
    """The repository, for who may write to it."""
    found = it.hub.readable(f"{kind}/{repo}", it.token, files=False)
    if it.token not in it.hub.writers:
        raise Refused(403 if it.token else 401, None, "You need write access to this repository")
    return found


def create(it: Any) -> None:
    asked = json.loads(it.body)
    if it.token is None or it.token not in it.hub.tokens:
        raise Refused(401, None, "Invalid username or password.")
    if it.token not in it.hub.writers:
        raise Refused(403, None, "You don't have the rights to create a repository in this namespace")
    repo, kind = f"{asked['organization']}/{asked['name']}", f"{asked.get('type', 'model')}s"
    if f"{kind}/{repo}" in it.hub.repos:
        raise Refused(409, None, "You already created this repo")
    it.hub.commit(repo, {".gitattributes": b"*.parquet filter=lfs\n"}, kind=kind)
    it.hub.repos[f"{kind}/{repo}"].private = asked.get("visibility") == "private"
    for token in it.hub.writers:
        it.hub.tokens[token].add(repo)
    it.send_json({"url": f"{it.hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo}", "name": repo})


def whoami(it: Any) -> None:
    if it.token not in it.hub.tokens:
        raise Refused(401, None, "Invalid username or password.")
    it.send_json({"type": "user", "name": "tester", "orgs": [{"name": "acme"}], "auth": {"type": "access_token"}})


def validate_yaml(it: Any) -> None:
    content = json.loads(it.body)["content"]
    front = content.split("---\n")[1] if content.startswith("---\n") else "{}"
    try:
        errors = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no mapping"}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    it.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def refs(it: Any, kind: str, repo: str) -> None:
    found = it.hub.readable(f"{kind}/{repo}", it.token, files=False)
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in found.refs.items()]
    it.send_json({"branches": branches, "tags": [], "converts": []})


def branch(it: Any, kind: str, repo: str, name: str) -> None:
    found = writing(it, kind, repo)
    if name in found.refs:
        raise Refused(409, None, "Reference already exists")
    found.refs[name] = find(found, json.loads(it.body or b"{}").get("startingPoint", "main"))[0]
    it.send_json({})


def preupload(it: Any, kind: str, repo: str, rev: str) -> None:
    found = writing(it, kind, repo)
    _, tree = find(found, rev)

    def mode(path: str) -> dict[str, Any]:
        there = oid(tree[path]) if path in tree else None
        return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False,
                "oid": there}  # fmt: skip

    it.send_json({"files": [mode(file["path"]) for file in json.loads(it.body)["files"]]})


def batch(it: Any, repo: str, kind: str | None = None) -> None:
    writing(it, kind or "models", repo)
    objects = []
    for asked in json.loads(it.body)["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in it.hub.storage:
            at = f"{it.hub.storage_url}/{asked['oid']}"
            upload: dict[str, Any] = {"href": at}
            if asked["size"] > it.hub.part_size:
                parts = -(-asked["size"] // it.hub.part_size)
                header = {str(i): f"{at}/{i}" for i in range(1, parts + 1)}
                upload = {"href": f"{at}/complete", "header": header | {"chunk_size": str(it.hub.part_size)}}
            verify = {"href": f"{it.hub.url}/storage/{asked['oid']}/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    it.send_json({"transfer": "basic", "objects": objects})


def keep(it: Any, sha: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != sha:
        raise Refused(400, None, "the content is not what its hash says")
    it.hub.storage[sha] = content
    it.send(200, b"", {"ETag": f'"{sha}"'})


def put(it: Any, sha: str) -> None:
    if it.command != "PUT":
        return it.storage(sha)
    return keep(it, sha, it.body)


def put_part(it: Any, sha: str, part: str) -> None:
    it.hub.parts.setdefault(sha, {})[int(part)] = it.body
    it.send(200, b"", {"ETag": f'"{part}"'})


def complete(it: Any, sha: str) -> None:
    parts = it.hub.parts[sha]
    if [part["partNumber"] for part in json.loads(it.body)["parts"]] != sorted(parts):
        raise Refused(400, None, "parts are missing")
    keep(it, sha, b"".join(parts[i] for i in sorted(parts)))


def verify(it: Any, sha: str) -> None:
    if len(it.hub.storage.get(sha, b"")) != json.loads(it.body)["size"]:
        raise Refused(404, None, "no such object")
    it.send_json({})


def commit(it: Any, kind: str, repo: str, rev: str) -> None:
    found = writing(it, kind, repo)
    lines = [json.loads(line) for line in it.body.splitlines()]
    head, tree = find(found, rev)
    parent = lines[0]["value"].get("parentCommit")
    if parent is not None and parent != head:
        raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
    files = dict(tree)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if it.hub.xet and value["oid"] in (there := dict(xet_files(it.hub.xet))):
                it.hub.storage[value["oid"]] = xet_content(it.hub.xet, *there[value["oid"]])
            if value["oid"] not in it.hub.storage:
                raise Refused(400, None, f"{value['path']} was not uploaded")
            files[value["path"]] = it.hub.storage[value["oid"]]
        elif files.pop(value["path"], None) is None:
            raise Refused(404, "EntryNotFound", f"{value['path']} does not exist")
    made = it.hub.commit(repo, files, ref=rev, kind=kind)
    it.hub.made.append((f"{kind}/{repo}", made))
    url = f"{it.hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo}/commit/{made}"
    it.send_json({"success": True, "commitOid": made, "commitUrl": url, "pullRequestUrl": None})


def xet_token(it: Any, kind: str, repo: str, access: str, rev: str) -> None:
    """In headers for huggingface_hub, in the body for `hf_xet`."""
    if access == "write":
        writing(it, kind, repo)
    else:
        it.hub.readable(f"{kind}/{repo}", it.token, files=True)
    if it.hub.xet is None:
        raise Refused(404, None, "no Xet here")
    told = {"casUrl": f"local://{it.hub.xet}", "accessToken": "xet", "exp": int(time.time()) + 3600}
    names = zip(("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration"), told.values(), strict=True)
    it.send_json(told, headers={name: str(value) for name, value in names})


def xet_files(store: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """SHA-256 of each file that Xet's storage has, with its hash there and its size, by the shards in it.

    A shard: 48 bytes; then for each file its hash, flags and number of segments, the segments, as many checks of them,
    and the SHA-256; 48 bytes each. Hashes are four little-endian words.
    """

    def text(words: bytes) -> str:
        return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))

    for shard in store.glob("xet/xorbs/shards/*.mdb"):
        content = shard.read_bytes()
        lines = [content[at : at + 48] for at in range(48, len(content), 48)]
        at = 0
        while lines[at][:32] != b"\xff" * 32:
            flags, segments = struct.unpack("<II", lines[at][32:40])
            size = sum(struct.unpack("<I", line[36:40])[0] for line in lines[at + 1 : at + 1 + segments])
            end = at + 1 + segments * (2 if flags >> 31 else 1)
            if flags >> 30 & 1:
                yield text(lines[end][:32]), (text(lines[at][:32]), size)
                end += 1
            at = end


def xet_content(store: Path, file: str, size: int) -> bytes:
    """A file as Xet's client puts it together."""
    import hf_xet

    out = store / "out"
    where = {"endpoint": f"local://{store}", "token": "xet", "token_expiry_unix_secs": int(time.time()) + 3600}
    with hf_xet.XetSession().new_file_download_group(**where) as group:
        group.start_download_file(hf_xet.XetFileInfo(file, size), str(out))
    return out.read_bytes()


SHA = r"/storage/(?P<sha>[0-9a-f]{64})"
WRITES = [
    ("/api/repos/create", create),
    ("/api/whoami-v2", whoami),
    ("/api/validate-yaml", validate_yaml),
    (rf"{API}/refs", refs),
    (rf"{API}/branch/(?P<name>[^/]+)", branch),
    (rf"{API}/preupload/(?P<rev>[^/]+)", preupload),
    (rf"/(?:(?P<kind>datasets)/)?{REPO}\.git/info/lfs/objects/batch", batch),
    (SHA, put),
    (rf"{SHA}/(?P<part>\d+)", put_part),
    (rf"{SHA}/complete", complete),
    (rf"{SHA}/verify", verify),
    (rf"{API}/xet-(?P<access>read|write)-token/(?P<rev>[^/]+)", xet_token),
    (rf"{API}/commit/(?P<rev>[^/]+)", commit),
]
