"""What a folder holds, by hash: names, sizes and digests that a place can be compared with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DistillError

CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """One file to be published. `content` is where it lies, or its bytes; digests are hexadecimal.

    sha256: of the content, as LFS and we name it. oid: git's hash of it. md5: what buckets tell of an object.
    """

    name: str
    content: Path | bytes
    size: int
    sha256: str
    oid: str
    md5: str

    @classmethod
    def of(cls, name: str, content: Path | bytes) -> "File":
        """Read once, for all three digests."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        sha256, oid, md5 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size), hashlib.md5(usedforsecurity=False)
        for part in [content] if isinstance(content, bytes) else _parts(content):
            for each in (sha256, oid, md5):
                each.update(part)
        return cls(name, content, size, sha256.hexdigest(), oid.hexdigest(), md5.hexdigest())

    def encode(self) -> dict[str, str | int]:
        """As a record tells of it."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


def contents(folder: Path, extra: Mapping[str, bytes] | None = None) -> list[File]:
    """The files of `folder` in order of name, hidden ones left out; `extra` are added where there is none.

    An empty or missing folder is a `DistillError`.
    """
    found: dict[str, Path | bytes] = dict(extra or {})
    for path in Path(folder).rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = path
    if not any(isinstance(content, Path) for content in found.values()):
        raise DistillError(f"{folder} holds nothing to publish: make it first")
    return [File.of(name, found[name]) for name in sorted(found)]


def _parts(path: Path):
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            yield part
