"""What is kept elsewhere is whole, whenever its machine was lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from publishing.places import PLACES, at_hand

from distill import kept
from distill.errors import DistillError
from distill.kept import Kept, copy_from, filled
from distill.serving.journal import Journal, Sample
from distill.training.checkpoints import whole


@pytest.fixture(scope="module", params=["folder", "gs", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path_factory.mktemp("volume"))
        return
    with PLACES[request.param]() as place, at_hand(place):
        yield place.to.rsplit("/", 1)[0]


@pytest.fixture
def place(bucket: str, request: pytest.FixtureRequest) -> str:
    return f"{bucket}/{request.node.name.partition('[')[0]}"


def write(folder: Path, **files: str) -> Path:
    """A folder of steps; `_` in a name is a folder."""
    for name, text in files.items():
        file = folder / name.replace("_", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def fetched(place: str, folder: Path) -> dict[str, str] | None:
    """What another machine finds."""
    return read(folder) if Kept(folder, place, whole).fetch() else None


def test_another_machine_finds_what_is_whole(place: str, tmp_path: Path) -> None:
    assert fetched(place, tmp_path / "none") is None
    here = write(tmp_path / "steps", **{"3_a": "three", "6_d_b": "six", "identity.json": "{}"})
    write(here, **{"9.orbax-checkpoint-tmp_a": "half"})
    copy = Kept(here, place, whole)
    copy.send()
    assert fetched(place, tmp_path / "1/steps") == {"3/a": "three", "6/d/b": "six", "identity.json": "{}"}
    write(here, **{"9_a": "nine", "identity.json": "{'new': 1}"})
    (here / "3/a").unlink()
    copy.send()
    assert fetched(place, tmp_path / "2/steps") == {"6/d/b": "six", "9/a": "nine", "identity.json": "{'new': 1}"}
    left = [path for path in copy._fs.find(copy._at) if path.endswith("/a")]
    assert len(left) == 1, "3/a is nobody's any more"
    copy.remove()
    assert fetched(place, tmp_path / "3/steps") is None


def test_a_copy_that_is_cut_off_leaves_the_one_before(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names with other bytes, as another run leaves them: none of them is over an old one."""
    here = write(tmp_path / "steps", **{"3_a": "three", "identity.json": "one"})
    copy = Kept(here, place, whole)
    copy.send()
    write(here, **{"3_a": "THREE AGAIN", "identity.json": "two"})
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "_write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            copy.send()
    assert fetched(place, tmp_path / "1/steps") == {"3/a": "three", "identity.json": "one"}
    again = Kept(tmp_path / "1/steps", place, whole)
    write(tmp_path / "1/steps", **{"6_a": "six"})
    again.send()
    assert fetched(place, tmp_path / "2/steps") == {"3/a": "three", "6/a": "six", "identity.json": "one"}
    assert not [path for path in again._fs.find(again._at) if again._token not in path and "manifest" not in path]


def test_what_is_here_goes_before_what_is_there(place: str, tmp_path: Path) -> None:
    Kept(write(tmp_path / "steps", identity="old"), place, whole).send()
    write(tmp_path / "1/steps", identity="new")
    assert fetched(place, tmp_path / "1/steps") is None
    assert read(tmp_path / "1/steps") == {"identity": "new"}


def test_a_copy_that_lacks_a_file_is_no_start_from_nothing(place: str, tmp_path: Path) -> None:
    copy = Kept(write(tmp_path / "steps", **{"3_a": "three"}), place, whole)
    copy.send()
    copy._fs.rm_file(next(path for path in copy._fs.find(copy._at) if path.endswith("/a")))
    with pytest.raises(DistillError, match=r"cannot be read .* leave storage\.work out to start over"):
        fetched(place, tmp_path / "1/steps")
    assert not (tmp_path / "1/steps").exists()


def test_a_journal_goes_on_elsewhere(place: str, tmp_path: Path) -> None:
    sample = Sample("a", "stop", [1], [-0.5])
    for machine, number in (("1", 0), ("2", 1)):
        journal = Journal(tmp_path / machine, {"seed": 0}, "0000", place)
        journal.look_up(["aa"])
        assert len(journal.known) == number
        journal.add("aa", number, sample)
        journal.close()
    other = Journal(tmp_path / "3", {"seed": 1}, "0000", place)
    other.look_up(["aa"])
    assert not other.known
    other.close()


def test_rows_of_batches_are_found_one_by_one(place: str, tmp_path: Path) -> None:
    for names in (("0000", "0001"), ("0000",)):
        with filled(place) as folder:
            for name in names:
                write(folder, **{f"{name}.jsonl": name})
            for stale in {"0000.jsonl", "0001.jsonl"} - {f"{name}.jsonl" for name in names}:
                (folder / stale).unlink(missing_ok=True)
    assert copy_from(f"{place}/0000.jsonl", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "0000"
    assert not copy_from(f"{place}/0001.jsonl", tmp_path / "out")


def test_what_cannot_be_sent_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    copy = Kept(write(tmp_path / "steps", identity="{}"), str(tmp_path / "file/work"), whole)
    for _ in range(2):
        copy._try()
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 1
    assert "a retry elsewhere would start over" in told


def test_a_folder_is_made_a_bucket_is_not(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scheme, separator, _ = bucket.rpartition("://")
    place = f"{scheme}://not-there-{tmp_path.name[-4:].strip('_')}/work" if separator else f"{bucket}/not/there"
    copy = Kept(write(tmp_path / "steps", identity="{}"), place, whole)
    assert not copy.fetch()
    copy._try()
    assert ("cannot be written" in capsys.readouterr().err) == bool(separator)


def test_it_is_sent_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "EVERY", 0.01)
    here = write(tmp_path / "steps", **{"3_a": "three"})
    copy = Kept(here, str(tmp_path / "volume"), whole)
    copy.start()
    manifest = tmp_path / "volume/manifest.json"
    for step in ("3", "6"):
        write(here, **{f"{step}_a": step * 5})
        while not manifest.exists() or f"{step}/a" not in manifest.read_text():
            copy._closed.wait(0.01)
    copy.close()
