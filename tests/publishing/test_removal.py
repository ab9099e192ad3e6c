"""Completions go only when their dataset is known to lie elsewhere as it is now."""

import json
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.publishing.contents import contents
from distill.publishing.removal import remove_completions


def record(path: Path, folder: Path, what: str = "dataset") -> Path:
    files = [file.encode() for file in contents(folder)]
    path.write_text(json.dumps({"what": what, "to": "gs://acme/x", "files": files}))
    return path


def test_nothing_goes_before_the_dataset_is_elsewhere(folder: Path, tmp_path: Path) -> None:
    completions, work = tmp_path / "completions", tmp_path / "work"
    completions.mkdir()
    work.mkdir()
    (completions / "0000.parquet").write_bytes(b"rows")
    (work / "journal").write_bytes(b"rows")
    places = {"completions": completions, "work": work, "out": tmp_path / "removed.json"}
    student = record(tmp_path / "student.json", folder, what="sft")
    published = record(tmp_path / "there.json", folder)
    (folder / "ledger.json").write_text("{ }")
    for records in ([student], [student, published]):
        with pytest.raises(DistillError, match="has the dataset as it is now: nothing was removed"):
            remove_completions(folder, records, **places)
    assert (completions / "0000.parquet").exists()
    assert not (tmp_path / "removed.json").exists()
    record(published, folder)
    said = remove_completions(folder, [student, published], **places)
    assert said == "1 files of completions removed (4 bytes), their dataset is at gs://acme/x"
    assert not list(completions.iterdir())
    assert not work.exists()
    told = json.loads((tmp_path / "removed.json").read_text())
    assert told["removed"] == [{"name": "0000.parquet", "size": 4}]
