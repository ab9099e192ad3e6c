"""Unfinished work, kept where it outlives its machine: in a folder of another disk, in GCS or in S3.

    {place}/{token}-{n}/{name}     a file; never overwritten
    {place}/manifest.json          which of them belong together, replaced as a whole

Whoever reads starts from the manifest, so that a copy which was cut off is none. fsspec is the one client.
"""

import json
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.files import replacing

EVERY = 5.0
"""Seconds between two looks at what is new."""

MANIFEST = "manifest.json"


class Kept:
    """A local file or folder with a copy at `place`. `whole` lists the files of it that are worth a copy.

    A thread sends them as they come; what it cannot send it says once, and tries again.
    """

    def __init__(self, local: Path, place: str, whole: Callable[[Path], list[Path]]):
        self.local, self.place, self.whole = local, place, whole
        self._root = local.parent
        self._fs, self._at = _open(place)
        self._token, self._rounds = uuid.uuid4().hex[:8], 0
        self._sent: dict[str, dict[str, Any]] = {}
        self._said, self._closed = False, threading.Event()
        self._thread: threading.Thread | None = None

    def fetch(self) -> bool:
        """Take what is kept where there is nothing here; a copy that cannot be read is a `DistillError`."""
        if self.local.exists():
            return False
        try:
            files = self._manifest()
            if not files:
                return False
            with tempfile.TemporaryDirectory(dir=_made(self._root), prefix=".kept-") as folder:
                for name, file in files.items():
                    target = Path(folder) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(f"{self._at}/{file['at']}", str(target))
                    if target.stat().st_size != file["size"]:
                        raise OSError(f"{file['at']} has {target.stat().st_size} bytes, not {file['size']}")
                (Path(folder) / self.local.name).rename(self.local)
        except Exception as error:  # each client has its own
            raise DistillError(
                f"{self.place} cannot be read ({_words(error)}): what is kept there is needed to go on; see to it, or "
                "leave storage.work out to start over"
            ) from None
        for name, file in files.items():
            self._sent[name] = file | {"stamp": _stamp(self._root / name)}
        print(f"{self.local} goes on from {self.place}", file=sys.stderr)
        return True

    def start(self) -> None:
        """Send what is whole from now on."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is whole now, and no more."""
        self._closed.set()
        if self._thread:
            self._thread.join()
            self._try()

    def remove(self) -> None:
        """Nobody will ask for it again."""
        self._closed.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        try:
            self._fs.rm(self._at, recursive=True)
        except FileNotFoundError:
            pass
        except Exception as error:  # what was made of it is there
            print(f"{self.place} cannot be deleted ({_words(error)}): nobody needs it any more", file=sys.stderr)

    def send(self) -> None:
        """Let `place` hold what is whole here, and nothing else."""
        found = {file.relative_to(self._root).as_posix(): file for file in self.whole(self.local)}
        known = {name: file for name, file in self._sent.items() if name in found}
        new = {name: file for name, file in found.items() if known.get(name, {}).get("stamp") != _stamp(file)}
        if not new and len(known) == len(self._sent):
            return
        self._rounds += 1
        for name, file in new.items():
            stamp = _stamp(file)
            at = f"{self._token}-{self._rounds}/{name}"
            with file.open("rb") as opened:  # a file that grows is sent as it was
                size = stamp[0]
                self._put(at, opened, size)
            known[name] = {"at": at, "size": size, "stamp": stamp}
        if any(not file.exists() for file in found.values()):
            return  # a checkpoint was deleted meanwhile: the next look finds another one
        listed = {name: {"at": file["at"], "size": file["size"]} for name, file in known.items()}
        self._write_manifest(json.dumps({"files": listed}).encode())
        self._sent = known
        self._forget({file["at"] for file in known.values()})

    def _watch(self) -> None:
        while not self._closed.wait(EVERY):
            self._try()

    def _try(self) -> None:
        try:
            if self.local.exists():
                self.send()
            self._said = False
        except Exception as error:  # whatever a client raises, the work itself goes on
            lost = error.filename if isinstance(error, FileNotFoundError) else None
            if lost and Path(lost).is_relative_to(self._root):
                return  # deleted while it was read; a bucket that does not exist has no file's name
            if not self._said:
                words = _words(error)
                print(f"{self.place} cannot be written ({words}): a retry elsewhere would start over", file=sys.stderr)
            self._said = True

    def _manifest(self) -> dict[str, dict[str, Any]]:
        try:
            return json.loads(self._fs.cat_file(f"{self._at}/{MANIFEST}"))["files"]
        except FileNotFoundError:
            return {}

    def _put(self, at: str, opened: Any, size: int) -> None:
        path = f"{self._at}/{at}"
        if "://" not in self.place:  # of a bucket it would make one whose name is misspelt
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open(path, "wb") as out:
            while size and (data := opened.read(min(size, 2**24))):
                out.write(data)
                size -= len(data)

    def _write_manifest(self, data: bytes) -> None:
        path = f"{self._at}/{MANIFEST}"
        if "://" not in self.place:
            with replacing(Path(path)) as tmp:
                tmp.write_bytes(data)
        else:
            self._fs.pipe_file(path, data)

    def _forget(self, named: set[str]) -> None:
        """Delete what the manifest names no more."""
        for path in self._fs.find(self._at):
            if (at := path.removeprefix(f"{self._at}/")) not in named | {MANIFEST}:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._at}/{at}")


@contextmanager
def filled(place: str) -> Iterator[Path]:
    """A folder to fill: `place` itself, or one that is sent to that bucket and has the place of what was there."""
    if "://" not in place:
        yield Path(place)
        return
    fs, at = _open(place)
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        names = {file.name for file in Path(folder).iterdir()}
        for name in sorted(names):
            fs.put_file(f"{folder}/{name}", f"{at}/{name}")
        for path in fs.find(at):
            if path.rpartition("/")[2] not in names:
                fs.rm_file(path)


def copy_from(place: str, out: Path) -> bool:
    """Copy a file of a folder or a bucket; False where there is none."""
    try:
        if "://" not in place:
            shutil.copyfile(place, out)
        else:
            fs, at = _open(place)
            fs.get_file(at, str(out))
    except FileNotFoundError:
        return False
    return True


def _open(place: str) -> tuple[Any, str]:
    """fsspec's client of a place, and the path there."""
    import fsspec  # not at the top: most jobs need none

    try:
        fs, at = fsspec.url_to_fs(place, use_listings_cache=False)
    except ImportError as error:
        raise DistillError(
            f"{place} needs a client that is not installed ({error}): pip install 'distill[publish]'"
        ) from None
    return fs, at.rstrip("/")


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
