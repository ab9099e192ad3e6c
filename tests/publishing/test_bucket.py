"""What is a bucket's alone: objects that somebody else wrote, large ones, a client that is not installed."""

import os
import re
from pathlib import Path

import fsspec
import pytest
from places import Place

from distill.config.results import Target
from distill.errors import DistillError
from distill.publishing import bucket
from distill.publishing.contents import File
from distill.publishing.run import publish

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


PART = 5 << 20  # the least that S3 takes
buckets = pytest.mark.parametrize("server", ["gs", "s3"], indirect=True)


@buckets
def test_an_object_of_somebody_else_is_never_overwritten(place: Place, folder: Path, tmp_path: Path) -> None:
    file = File.of("ledger.json", folder / "ledger.json")
    at = f"{place.to}/data/{file.sha256}.json"
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
    monkeypatch.setitem(bucket.PART_BYTES, "s3", PART)
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


def unfinished(place: Place) -> list[str]:
    """The keys of uploads in parts that nobody ended."""
    return [upload["Key"] for upload in place.fs.list_multipart_uploads("acme")]


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_what_a_killed_client_left_of_an_upload_in_parts_is_taken_away(
    place: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket.PART_BYTES, "s3", PART)
    name = "data/train-00000-of-00002.parquet"
    (folder / name).write_bytes(os.urandom((2 * PART) + 5))
    key = f"{place.to.removeprefix('s3://acme/')}/data/{File.of(name, folder / name).sha256}{Path(name).suffix}"
    for left in (key, f"{key}.theirs"):  # as a client that was killed leaves them
        begun = place.fs.call_s3("create_multipart_upload", Bucket="acme", Key=left)["UploadId"]
        part = {"Bucket": "acme", "Key": left, "UploadId": begun, "PartNumber": 1}
        place.fs.call_s3("upload_part", **part, Body=b"x" * PART)
    assert sorted(unfinished(place)) == [key, f"{key}.theirs"]
    record = place.publish(folder, tmp_path / "out.json")
    assert place.files(record)[name] == (folder / name).read_bytes()
    assert unfinished(place) == [f"{key}.theirs"], "ours is gone, somebody else's is theirs"
    place.fs.clear_multipart_uploads("acme")


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_an_upload_that_somebody_else_aborts_is_sent_again(
    place: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket.PART_BYTES, "s3", PART)
    name = "data/train-00000-of-00002.parquet"
    (folder / name).write_bytes(os.urandom((2 * PART) + 5))
    place.fail("PUT .*partNumber=3", meanwhile=lambda: place.fs.clear_multipart_uploads("acme"))
    record = place.publish(folder, tmp_path / "out.json")
    assert place.files(record)[name] == (folder / name).read_bytes()
    assert len(place.server.asked(r"POST .*\?uploads")) == 2
    assert unfinished(place) == []
    assert place.commits() == 1


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_who_may_not_list_uploads_can_publish(
    place: Place, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket.PART_BYTES, "s3", PART)
    name = "data/train-00000-of-00002.parquet"
    (folder / name).write_bytes(os.urandom((2 * PART) + 5))
    place.fail(r"GET /acme\?uploads", status=403, times=99)
    assert place.files(place.publish(folder, tmp_path / "out.json"))[name] == (folder / name).read_bytes()
    assert place.server.asked(r"GET /acme\?uploads")


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(DistillError, match=r"needs gcsfs, which is not installed: pip install 'distill\[publish\]'"):
        publish(folder, Target(to="gs://acme/x"), "demo", None, tmp_path / "out.json")
