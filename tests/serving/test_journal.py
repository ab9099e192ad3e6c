"""What a journal keeps through kills, and what it takes for known."""

from pathlib import Path

import pytest

from distill.serving.journal import Journal, Sample, entry_name

KEY = {"teacher": "t", "seed": 0}
NAMES = ["aa", "bb", "cc"]


def sample(text: str) -> Sample:
    return Sample(text, "stop", [1, 2], [-0.5, -0.25])


def known(work: Path, batch: str = "0000", names: list[str] = NAMES, **key: object) -> dict:
    journal = Journal(work, KEY | key, batch)
    journal.look_up(names)
    journal.close()
    return journal.known


def write(work: Path, batch: str = "0000", *, finish: bool = True) -> Path:
    """A journal with two samples of `aa` and one of `bb`; its file."""
    journal = Journal(work, KEY, batch)
    for name, number in (("aa", 0), ("aa", 1), ("bb", 0)):
        journal.add(name, number, sample(f"{name}{number} \n é\u2028"))
    if finish:
        journal.finish()
    journal.close()
    return journal.file


@pytest.mark.parametrize("finish", [True, False])
def test_what_was_added_is_known_to_all_batches(tmp_path: Path, finish: bool) -> None:
    write(tmp_path, finish=finish)
    for batch in ("0000", "0001"):
        found = known(tmp_path, batch)
        assert found.keys() == {("aa", 0), ("aa", 1), ("bb", 0)}
        assert found["aa", 1] == sample("aa1 \n é\u2028")
    assert known(tmp_path, "0001", ["bb", "dd"]).keys() == {("bb", 0)}


def test_another_key_knows_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    assert known(tmp_path, teacher="u") == known(tmp_path, seed=1) == known(tmp_path, sampling={}) == {}


def test_wherever_a_kill_tears_the_last_line_the_others_stay(tmp_path: Path) -> None:
    file = write(tmp_path, finish=False)
    whole = file.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for length in range(last, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert known(tmp_path).keys() == {("aa", 0), ("aa", 1)}
        write(tmp_path, finish=False)  # goes on behind it
        assert known(tmp_path).keys() == {("aa", 0), ("aa", 1), ("bb", 0)}
    file.write_bytes(whole[:-1])  # all but the end of the line
    assert known(tmp_path).keys() == {("aa", 0), ("aa", 1), ("bb", 0)}


def test_what_is_no_entry_is_passed_over(tmp_path: Path) -> None:
    file = write(tmp_path, finish=False)
    file.write_bytes(b'\n3\n[]\n{"prompt": "aa"}\n\xff\n{"prompt": "aa", "sample": 7, "text": 1}\n' + file.read_bytes())
    assert known(tmp_path).keys() == {("aa", 0), ("aa", 1), ("bb", 0)}


def test_a_list_that_is_older_than_its_journal_does_not_count(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert file.with_suffix(".ids").exists()
    journal = Journal(tmp_path, KEY, "0000")
    journal.add("cc", 0, sample("new"))
    journal.close()  # as a kill leaves it: the list lacks cc
    assert known(tmp_path, "0001", ["cc"]).keys() == {("cc", 0)}


def test_a_prompt_is_its_messages_and_its_tokens() -> None:
    assert entry_name("a" * 16, [1, 2]) == entry_name("a" * 16, [1, 2])
    assert len({entry_name("a" * 16, [1, 2]), entry_name("b" * 16, [1, 2]), entry_name("a" * 16, [1])}) == 3
