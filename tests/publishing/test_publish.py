"""What is published is there whole, sent once, and only what changed is sent again."""

from pathlib import Path

import pytest
from places import TOKEN, Place

from distill.errors import DistillError

pytestmark = pytest.mark.filterwarnings(  # of the clients' own making: elsewhere warnings are errors
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_what_is_published_is_what_lies_here(place: Place, folder: Path, tmp_path: Path) -> None:
    record = place.publish(folder, tmp_path / "out.json")
    assert place.files(record) == tree(folder)
    assert record["sent"] == sorted(tree(folder))
    assert [file["name"] for file in record["files"]] == sorted(tree(folder))
    assert place.commits() == 1
    assert TOKEN not in (tmp_path / "out.json").read_text()


def test_the_same_again_sends_nothing(place: Place, folder: Path, tmp_path: Path) -> None:
    first = place.publish(folder, tmp_path / "out.json")
    before = len(place.uploads())
    again = place.publish(folder, tmp_path / "out.json")
    assert again == first | {"sent": []}
    assert len(place.uploads()) == before
    assert place.commits() == 1


def test_one_changed_shard_is_sent_alone(place: Place, folder: Path, tmp_path: Path) -> None:
    first = place.publish(folder, tmp_path / "out.json")
    before = len(place.uploads())
    (folder / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1 another shard" * 40)
    second = place.publish(folder, tmp_path / "out.json")
    assert second["sent"] == ["data/train-00001-of-00002.parquet"]
    assert len(place.uploads()) == before + 1
    assert place.files(second) == tree(folder)
    assert place.files(first) != tree(folder), "what was published before is still there"
    assert place.commits() == 2


def test_a_shard_that_is_gone_is_no_longer_part_of_it(place: Place, folder: Path, tmp_path: Path) -> None:
    place.publish(folder, tmp_path / "out.json")
    for i in range(2):
        (folder / f"data/train-0000{i}-of-00002.parquet").unlink()
    (folder / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1 shard 0" * 50)
    record = place.publish(folder, tmp_path / "out.json")
    assert place.files(record) == tree(folder)
    if place.scheme == "hf":
        assert len(place.uploads()) == 2, "the storage knows what the new name holds"


def test_an_empty_folder_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DistillError, match="holds nothing to publish"):
        place.publish(tmp_path / "empty", tmp_path / "out.json", card="# card")
    assert not (tmp_path / "out.json").exists()
