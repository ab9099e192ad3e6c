"""Datasets of every shape, read without a network, and what is wrong with a bad one on one line."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from services.hub_server import Hub

from distill.config.prompts import Source
from distill.errors import DistillError
from distill.text.sources import Conversation, open_source, read_conversations

USER, ANSWER = {"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "be brief"}
ROWS = [{"messages": [SYSTEM, USER, ANSWER], "id": 7}, {"messages": [USER, ANSWER, USER, ANSWER], "id": 8}]
READ = [Conversation([SYSTEM, USER], "4", "4"), Conversation([USER, ANSWER, USER], "4", "4")]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **settings: str) -> list[Conversation]:
    return read_conversations(Source(source=str(path), **settings))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.jsonl.gz", "folder/a.jsonl", "folder/a.parquet"])
def test_the_same_rows_from_every_kind_of_file_and_folder(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    assert read(path.parent if "folder" in name else path) == READ


def test_a_folder_has_splits(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", ROWS)
    write(tmp_path / "data" / "test.jsonl", ROWS[1:])
    assert read(tmp_path, split="test") == READ[1:]
    with pytest.raises(DistillError, match=r"Bad split: dev\. Available splits: \['train', 'test'\]"):
        read(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"prompt": "2 + 2", "completion": "4"}, {}, Conversation([USER], "4", "4")),
        ({"prompt": "2 + 2"}, {}, Conversation([USER], None, None)),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, {}, Conversation([SYSTEM, USER], "4", "4")),
        ({"prompt": "no", "messages": [USER, ANSWER]}, {}, Conversation([USER], "4", "4")),
        ({"q": "2 + 2", "a": "4"}, {"prompt": "q", "completion": "a"}, Conversation([USER], "4", "4")),
        ({"prompt": "2 + 2", "completion": "5", "r": 4}, {"reference": "r"}, Conversation([USER], "5", "4")),
        ({"messages": [USER]}, {}, Conversation([USER], None, None)),
        ({"turns": [USER, ANSWER]}, {"messages": "turns"}, Conversation([USER], "4", "4")),
    ],
)  # fmt: skip
def test_columns_by_name_and_by_recipe(tmp_path: Path, row: dict, settings: dict, expected: Conversation) -> None:
    for name in ("a.jsonl", "a.parquet"):
        assert read(write(tmp_path / name, [row]), **settings) == [expected]


@pytest.mark.parametrize(
    "messages",
    [[], None, "text", [ANSWER], [SYSTEM], [{"role": "user", "content": "  "}], [{"role": "user"}],
     [{"role": "user", "content": ["part"]}], [{"from": "human", "value": "2 + 2"}], ["2 + 2"]],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_malformed(tmp_path: Path, messages: object) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": messages}, *ROWS])
    assert list(open_source(Source(source=str(path))).conversations) == [None, *READ]
    path = write(tmp_path / "b.jsonl", [{"messages": messages}])
    with pytest.raises(DistillError, match="has 1 rows and none is a conversation"):
        read(path)


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    """`datasets` reads a JSON column of dates as timestamps: 2020-01-01 came back with a time of day."""
    rows = [{"prompt": "when?", "completion": "2020-01-01"}]
    assert read(write(tmp_path / "a.jsonl", rows))[0].original == "2020-01-01"
    assert read(write(tmp_path / "a.parquet", rows))[0].original == "2020-01-01"
    with pytest.raises(DistillError, match="column completion is read as dates, not as text"):
        read(write(tmp_path / "folder" / "a.jsonl", rows).parent)


def test_lines_of_different_shape_and_any_script_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        '{"prompt": "né 日本", "x": 1}',
        "",
        '{"prompt": [{"role": "user", "content": "b", "name": "c"}], "x": {}}',
    ]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert [row.messages[0]["content"] for row in read(path)] == ["né 日本", "b"]


@pytest.mark.parametrize(
    ("text", "settings", "complaint"),
    [
        ("", {}, r"\(split train\) is empty"),
        ('{"text": "a", "id": 1}\n', {}, r"has no column messages or prompt \(there is text, id\): name"),
        ('{"prompt": "a"}\n', {"completion": "answer"}, r"has no column answer \(there is prompt\)"),
        ('{"prompt": "a"}\n', {"reference": "gold"}, r"has no column gold \(there is prompt\)"),
        ('{"prompt": "a"}\n', {"messages": "m", "prompt": "p"}, r"leave out prompt and completion, or"),
        ('{"prompt": "a"}\n{"prompt": \n', {}, r"a\.jsonl line 2 is not JSON"),
        ('{"prompt": "a"}\n[1]\n', {}, r"row 2 is '\[1\]': a row is an object"),
        ('[{"prompt": "a"}', {}, r"a\.jsonl is not JSON"),
        ('{"prompt": "a"}\n', {"split": "test"}, r"is one file: leave out its config and split"),
        ('{"prompt": "a"}\n', {"revision": "v1"}, r"is local and has no revision v1"),
    ],
)  # fmt: skip
def test_a_bad_dataset_is_explained_on_one_line(tmp_path: Path, text: str, settings: dict, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DistillError, match=complaint) as refusal:
        read(path, **settings)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"nowhere\.jsonl does not exist"):
        read_conversations(Source(source="nowhere.jsonl"))
    (tmp_path / "a.csv").write_text("prompt\na\n")
    with pytest.raises(DistillError, match=r"a\.csv is none of \.jsonl, \.json, \.parquet"):
        read(tmp_path / "a.csv")
    damaged = write(tmp_path / "a.parquet", ROWS)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(DistillError, match=r"a\.parquet cannot be read: "):
        read(damaged)


def test_what_was_read_is_recorded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    first, again = (open_source(Source(source=str(path))).origin for _ in range(2))
    assert first == again
    assert first["source"] == str(path)
    path.write_text(path.read_text() + "\n")
    assert open_source(Source(source=str(path))).origin["sha256"] != first["sha256"]


ASK_HUB = """
import json, sys
from distill.config.prompts import Source
from distill.errors import DistillError
from distill.text.sources import open_source
for settings in json.loads(sys.argv[1]):
    try:
        opened = open_source(Source(**settings))
        print(json.dumps([opened.origin["commit"], [row.messages for row in opened.conversations]]))
    except DistillError as error:
        print(json.dumps(str(error)))
"""


def ask_hub(hub: Hub, home: Path, settings: list[dict], **environment: str) -> list:
    """Commit and messages, or the error, of each dataset, from a process with its own HF_HOME."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    run = subprocess.run(
        [sys.executable, "-c", ASK_HUB, json.dumps(settings)],
        env=inherited | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_hub_dataset_is_pinned_recorded_and_read_again_offline(tmp_path: Path) -> None:
    """Offline, `datasets` itself gives the newest commit in its cache for any revision asked of it."""
    one, two = ("".join(json.dumps(row) + "\n" for row in rows).encode() for rows in (ROWS[:1], ROWS))
    with Hub() as hub:
        first = hub.commit("acme/chats", {"data/train.jsonl": one}, kind="datasets")
        second = hub.commit("acme/chats", {"data/train.jsonl": two}, kind="datasets")
        hub.commit("acme/gated", {"data/train.jsonl": one}, kind="datasets")
        hub.repos["datasets/acme/gated"].gated = True
        pinned, moving = {"source": "acme/chats", "revision": first}, {"source": "acme/chats"}
        wrong = [moving | other for other in ({"split": "dev"}, {"config": "other"}, {"revision": "f" * 40})]
        read = ask_hub(hub, tmp_path, [pinned, moving, *wrong, {"source": "acme/gated"}])
        offline = ask_hub(hub, tmp_path, [pinned, moving, moving | {"revision": "main"}], HF_HUB_OFFLINE="1")
    assert read[0] == [first, [READ[0].messages]]
    assert read[1] == [second, [row.messages for row in READ]]
    assert offline[:2] == read[:2]
    assert "offline, nothing tells which commit main is: set `revision` to a commit" in offline[2]
    for complaint, reason in zip(read[2:5], ("Unknown split", "'other' not found", "Revision Not Found"), strict=True):
        assert "dataset acme/chats (a Hub id; a path starts with ./ or /) cannot be read: " in complaint
        assert reason in complaint
        assert "\n" not in complaint
    assert f"Ask for access at {hub.url}/datasets/acme/gated, then log in with `hf auth login`" in read[5]


def test_a_hub_dataset_is_streamed_at_its_commit(tmp_path: Path) -> None:
    """Nothing but the small files of the client's own is left on the disk."""
    with Hub() as hub:
        path = write(tmp_path / "train.parquet", ROWS)
        first = hub.commit("acme/chats", {"data/train.parquet": path.read_bytes()}, kind="datasets")
        hub.commit("acme/chats", {"data/train.parquet": write(path, ROWS[:1]).read_bytes()}, kind="datasets")
        streamed = {"source": "acme/chats", "revision": first, "stream": True}
        (read,) = ask_hub(hub, tmp_path / "home", [streamed])
        (refused,) = ask_hub(hub, tmp_path / "home", [{"source": "acme/chats", "stream": True}], HF_HUB_OFFLINE="1")
    assert read == [first, [row.messages for row in READ]]
    assert "offline, nothing can be streamed: leave out `stream`" in refused
    assert not list((tmp_path / "home").rglob("*.arrow"))
