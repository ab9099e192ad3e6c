"""Rows of a dataset: a Hub id, a folder, or a JSONL, JSON or Parquet file."""

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from distill.config.prompts import Source
from distill.errors import DistillError
from distill.files import file_digest
from distill.licenses import license_of

FILES = (".jsonl", ".json", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz")


@dataclass(frozen=True)
class Opened:
    """Columns and rows; `dates` are columns that came as timestamps, `origin` says what exactly was read."""

    columns: list[str]
    rows: Iterator[dict[str, Any]]
    dates: frozenset[str] = frozenset()
    origin: dict[str, Any] = field(default_factory=dict)


def open_dataset(source: Source) -> Opened:
    """Open what `source` names; what is wrong with it is a `DistillError` now, or when the row is read."""
    path = source.local
    if path is None:
        return _hub(source)
    if not path.exists():
        raise DistillError(f"dataset {source.source} does not exist")
    if source.revision is not None:
        raise DistillError(f"dataset {source.source} is local and has no revision {source.revision}: leave it out")
    if path.is_dir():
        return _folder(source, path)
    if source.config is not None or source.split != "train":
        raise DistillError(f"dataset {source.source} is one file: leave out its config and split")
    return _file(source, path)


def _file(source: Source, path: Path) -> Opened:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    if not suffixes or suffixes[-1] not in FILES:
        raise DistillError(f"dataset {path} is none of {', '.join(FILES)}: convert it to one of them")
    origin = {"sha256": file_digest(path)}
    if suffixes[-1] == ".parquet":
        files = {"train": str(path)}
        return _opened(source, _load(source, "parquet", data_files=files, split="train", streaming=True), origin)
    rows = _json_rows(path)
    first = list(islice(rows, 1000))
    return Opened(list(dict.fromkeys(key for row in first for key in row)), chain(first, rows), origin=origin)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list, or of one JSON object a line.

    Not through `datasets`: its JSON reader turns a column of strings that look like dates into timestamps and
    columns of mixed type into JSON text, and a broken line has no number there.
    """
    import fsspec  # opens the compressed ones too

    number = 0
    try:
        with fsspec.open(str(path), "rt", encoding="utf-8-sig", compression="infer") as file:
            if file.read(1) == "[":
                yield from _objects(path, json.loads("[" + file.read()))
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield from _objects(path, [json.loads(line)], number)
    except json.JSONDecodeError as error:
        where = f" line {number}" if number else ""
        raise DistillError(
            f"dataset {path}{where} is not JSON ({error.msg}): give one object a line, or one list of objects"
        ) from None
    except (UnicodeDecodeError, EOFError) as error:
        raise DistillError(f"dataset {path} cannot be read after line {number}: {error}") from None


def _objects(path: Path, values: list[Any], first: int = 1) -> Iterator[dict[str, Any]]:
    for number, value in enumerate(values, first):
        if not isinstance(value, dict):
            raise DistillError(f"dataset {path} row {number} is {str(value)[:40]!r}: a row is an object with columns")
        yield value


def _folder(source: Source, path: Path) -> Opened:
    """Streamed, so that nothing is copied into a cache."""
    dataset = _load(source, str(path), name=source.config, split=source.split, streaming=True)
    license = license_of(path)
    return _opened(source, dataset, {"license": license} if license else {})


def _hub(source: Source) -> Opened:
    """Through the Hugging Face cache, so that HF_HUB_OFFLINE finds it again; and the commit that is read.

    Offline, `datasets` takes the newest commit that it has, whatever revision is asked for: there the
    snapshot of a pinned commit is read from the cache, and a name that may have moved is refused.
    """
    import huggingface_hub as hub

    offline, pinned = hub.is_offline_mode(), bool(re.fullmatch("[0-9a-f]{40}", source.revision or ""))
    try:
        if offline and pinned:
            folder = hub.snapshot_download(source.source, repo_type="dataset", revision=source.revision)
            opened = _folder(source, Path(folder))
            return replace(opened, origin={"commit": source.revision, **opened.origin})
        if offline and source.revision is not None:
            raise DistillError(
                f"dataset {source.source}: offline, nothing tells which commit {source.revision} is: "
                "set `revision` to a commit of 40 hex digits"
            )
        info = None if offline else hub.HfApi().dataset_info(source.source, revision=source.revision)
        commit = info and info.sha
    except Exception as error:
        raise _complaint(source, error) from None
    if source.stream and offline:
        raise DistillError(f"dataset {source.source}: offline, nothing can be streamed: leave out `stream`")
    streaming = {"streaming": True} if source.stream else {}
    dataset = _load(source, source.source, name=source.config, split=source.split, revision=commit, **streaming)
    if offline:
        cached = re.search(r"/([0-9a-f]{40})/", Path(dataset.cache_files[0]["filename"]).as_posix())
        commit = cached and cached[1]
    license = info and info.card_data and info.card_data.get("license")
    return _opened(source, dataset, {"commit": commit} | ({"license": license} if license else {}))


def _opened(source: Source, dataset: Any, origin: dict[str, Any]) -> Opened:
    """Of what `datasets` opened; columns that nobody asked for (images, say) are not decoded."""
    names = dataset.column_names or list(next(_explained(source, iter(dataset)), {}))
    asked = {
        source.messages,
        source.prompt,
        source.completion,
        source.reference,
        "messages",
        "prompt",
        "completion",
    }
    types = {name: str(getattr(feature, "dtype", "")) for name, feature in (dataset.features or {}).items()}
    rows = iter(dataset.select_columns([name for name in names if name in asked]))
    dates = frozenset(name for name, kind in types.items() if kind.startswith(("timestamp", "date")))
    return Opened(names, _explained(source, rows), dates, origin)


def _load(source: Source, *args: Any, **options: Any) -> Any:
    """`load_dataset`; whatever it complains of is put on one line that names the dataset."""
    import datasets  # a second or more: only who reads through it pays

    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:
        raise _complaint(source, error) from None


def _explained(source: Source, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except Exception as error:
        raise _complaint(source, error) from None


def _complaint(source: Source, error: Exception) -> Exception:
    if isinstance(error, DistillError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return error
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    if source.local is not None:
        return DistillError(f"dataset {source.source} cannot be read: {reason}")
    if re.search("gated|authenticated|Unauthorized|Forbidden", reason):
        from huggingface_hub import constants

        page = f"{constants.ENDPOINT}/datasets/{source.source}"
        reason += f" Ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN"
    return DistillError(f"dataset {source.source} (a Hub id; a path starts with ./ or /) cannot be read: {reason}")
