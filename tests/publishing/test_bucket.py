"""What is a bucket's alone: objects that somebody else wrote, large ones, a client that is not installed."""

import os
import re
from pathlib import Path

import fsspec
import pytest
from places import Place

from distill.config import Target
from distill.errors import DistillError
from distill.publishing import bucket
from distill.publishing.contents import File
from distill.publishing.run import publish

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


buckets = pytest.mark.parametrize("server", ["gs", "s3"], indirect=True)


@buckets
def test_an_object_of_somebody_else_is_never_overwritten(place: Place, folder: Path, tmp_path: Path) -> None:
    file = File.of("ledger.json", folder / "ledger.json")
    at = f"{place.to}/data/{file.sha256}/ledger.json"
    place.fs.pipe_file(at, b"something else")
    with pytest.raises(DistillError, match=r"has 14 bytes, not the 3 of ledger\.json.*delete it there") as refused:
        place.publish(folder, tmp_path / "out.json")
    assert at in str(refused.value)
    assert place.fs.cat_file(at) == b"something else"
    assert place.commits() == 0


@buckets
def test_a_large_file_arrives_whole(place: Place, folder: Path, tmp_path: Path) -> None:
    content = os.urandom(6 << 20)
    (folder / "data/train-00000-of-00002.parquet").write_bytes(content)
    record = place.publish(folder, tmp_path / "out.json")
    assert place.files(record)["data/train-00000-of-00002.parquet"] == content
    assert place.publish(folder, tmp_path / "out.json")["sent"] == []


@pytest.mark.parametrize("server", ["s3"], indirect=True)
@pytest.mark.parametrize("fault", [None, ("PUT .*partNumber=2", "dropped"), ("POST .*uploadId=", "lost")])
def test_a_large_file_goes_to_s3_in_parts(
    place: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str] | None
) -> None:
    monkeypatch.setitem(bucket.PART_BYTES, "s3", 5 << 20)  # the least that S3 takes
    content = os.urandom((10 << 20) + 5)
    name = "data/train-00000-of-00002.parquet"
    (folder / name).write_bytes(content)
    there = place.commits(), len(place.listed("/data/"))
    if fault:
        place.fail(fault[0], **{fault[1]: True})
    record = place.publish(folder, tmp_path / "out.json")
    parts = [request.line for request in place.server.asked("PUT .*partNumber=")]
    assert {f"partNumber={i}" for i in (1, 2, 3)} <= {
        part for line in parts for part in re.findall(r"partNumber=\d", line)
    }
    assert place.files(record)[name] == content
    assert place.commits() == there[0] + 1
    assert len(place.listed("/data/")) == there[1] + (4 if there[1] == 0 else 1)
    before = len(place.uploads())
    assert place.publish(folder, tmp_path / "out.json")["sent"] == []
    assert len(place.uploads()) == before


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(DistillError, match=r"needs gcsfs, which is not installed: pip install 'distill\[publish\]'"):
        publish(folder, Target(to="gs://acme/x"), "demo", None, tmp_path / "out.json")
