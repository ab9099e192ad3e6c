"""Files that are there whole or not at all, and hashes that are the same in every process."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import DistillError


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `out`; on success rename it to `out`, on an error remove it.

    The body may make the sibling a file or a folder. A folder that is already at `out` is replaced.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield tmp
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)
        os.replace(tmp, out)
    finally:
        if tmp.is_dir():
            shutil.rmtree(tmp, ignore_errors=True)
        else:
            tmp.unlink(missing_ok=True)


def write_json(out: Path, value: Any) -> None:
    """Write `value` as indented JSON, in one rename."""
    with replacing(out) as tmp:
        tmp.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a `DistillError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DistillError(f"{path} is not JSON: {error}") from None


def write_jsonl(out: Path, rows: Iterator[dict] | list[dict]) -> None:
    """Write one JSON object a line, in one rename."""
    with replacing(out) as tmp, tmp.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path, *, torn: bool = False) -> list[dict]:
    """Read one JSON object a line; a broken line is a `DistillError` with its number.

    torn: a last line without its end is none, for a file that a process may have died over.
    """
    rows = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (torn and not line.endswith("\n")):
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DistillError(f"{path} line {number} is not JSON: {error}") from None
    return rows


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: the same in every process and on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
