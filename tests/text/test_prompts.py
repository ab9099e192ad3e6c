"""Batches are fixed slices, what is left out is counted, and what was there stays when more comes."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import byte_tokenizer

from distill.config.prompts import Prompts
from distill.errors import DistillError
from distill.files import digest, read_jsonl, write_jsonl
from distill.text.chat import prompt_id, prompt_tokens
from distill.text.prompts import index_prompts, shuffled
from distill.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def index(folder: Path, tokenizer: Tokenizer, rows: list[dict], *, prefill: int = 30, context: int = 100, **options):
    """index.json of `rows`, and the rows of its batches as they were written."""
    write_jsonl(folder / "data.jsonl", rows)
    prompts = Prompts(source=str(folder / "data.jsonl"), **options)
    found = index_prompts(prompts, tokenizer, prefill, context, folder / "work")
    written = {path.stem: read_jsonl(path) for path in sorted((folder / "work").glob("*.jsonl"))}
    assert list(written) == list(found["batches"])
    return found, written


def rows_of(texts: list[str]) -> list[dict]:
    return [{"prompt": text, "completion": text[::-1]} for text in texts]


def test_a_row_has_all_that_generation_needs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found, written = index(tmp_path, tokenizer, [{"prompt": "abc", "completion": "cba", "gold": 5}], reference="gold")
    messages = [{"role": "user", "content": "abc"}]
    assert written["0000"] == [
        {
            "prompt_id": prompt_id(messages),
            "messages": messages,
            "prompt_token_ids": prompt_tokens(tokenizer, messages, "tokenizer"),
            "reference": "5",
            "original": "cba",
        }
    ]
    assert len(prompt_id(messages)) == 16
    assert found["schema"] == 1
    assert found["source"]["source"] == str(tmp_path / "data.jsonl")
    assert found["batches"]["0000"] | {"hash": None} == {"hash": None, "read": 1, "kept": 1, "dropped": {}}


@given(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=3))
def test_an_id_is_of_the_digest_of_its_messages(messages: list[dict[str, str]]) -> None:
    """Known answers are found by it, so that a quicker way to it must give the same."""
    assert prompt_id(messages) == digest(messages)[:16]
    assert prompt_id([{"content": m["content"], "role": m["role"]} for m in messages]) == prompt_id(messages)


def test_turns_with_a_history_to_come_stand_behind_those_they_follow(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def chat(*texts: str) -> dict:
        return {"messages": [{"role": r, "content": c} for t in texts for r, c in (("user", t), ("assistant", "yes"))]}

    chats = [chat("a", "b", "c"), chat("d"), chat("x" * 200, "e"), chat("f", "g"), {"messages": []}]
    found, written = index(tmp_path, tokenizer, chats, turns="each_own", batch_size=3)
    first, second = written.values()
    assert [row["messages"][-1]["content"] for row in first + second] == ["a", "b", "c", "d", "f", "g"]
    ids = [row["prompt_id"] for row in first]
    assert [row.get("follows") for row in first] == [None, ids[0], ids[1], None]
    assert [row["prompt_token_ids"] is None for row in first] == [False, True, True, False]
    assert first[2] == {
        "prompt_id": prompt_id(chats[0]["messages"][:5]), "messages": chats[0]["messages"][:5],
        "prompt_token_ids": None, "reference": "yes", "original": "yes", "follows": ids[1],
    }  # fmt: skip
    counts = [(batch["read"], batch["kept"], batch["dropped"]) for batch in found["batches"].values()]
    assert counts == [(6, 4, {"overlong": 2}), (3, 2, {"malformed": 1})]
    again, _ = index(tmp_path, tokenizer, chats[:3], turns="each_own", batch_size=3)
    assert again["batches"]["0000"] == found["batches"]["0000"]


def test_batches_are_slices_of_the_source_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"t{i}" for i in range(5)]
    _, written = index(tmp_path, tokenizer, rows_of(texts), batch_size=2)
    got = [[row["messages"][0]["content"] for row in rows] for rows in written.values()]
    assert got == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    found, written = index(tmp_path, tokenizer, rows_of(texts), batch_size=2, num_batches=2)
    assert list(written) == ["0000", "0001"], "a batch that is no longer asked for goes"
    assert found["batches"]["0000"]["read"] == 2


def test_what_is_left_out_has_its_reason_in_its_own_batch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"prompt": "same"}, {"prompt": "same"}, {"prompt": None},
        {"prompt": "x " * 40}, {"prompt": "x " * 40}, {"prompt": "same"},
    ]  # fmt: skip
    found, _ = index(tmp_path, tokenizer, rows, batch_size=3)
    counts = [(batch["read"], batch["kept"], batch["dropped"]) for batch in found["batches"].values()]
    assert counts == [(3, 1, {"duplicate": 1, "malformed": 1}), (3, 0, {"duplicate": 2, "overlong": 1})]
    found, _ = index(tmp_path, tokenizer, rows, batch_size=3, duplicates="keep")
    assert [batch["kept"] for batch in found["batches"].values()] == [2, 1]


def test_the_first_of_equal_prompts_in_the_source_is_kept_whatever_the_shuffle(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"prompt": f"t{i // 4}", "completion": str(i)} for i in range(16)]
    for seed in (None, 0, 1, 2):
        _, written = index(tmp_path, tokenizer, rows, batch_size=2, shuffle_seed=seed, shuffle_block=4)
        kept = sorted(int(row["original"]) for rows in written.values() for row in rows)
        assert kept == [0, 4, 8, 12]


def test_an_overlong_prompt_can_fail_and_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = rows_of(["short", "x " * 40])
    name = prompt_id([{"role": "user", "content": "x " * 40}])
    refusal = rf"^prompt {name} has \d+ tokens, max_prefill_length is 30: raise it or let the filter drop it"
    with pytest.raises(DistillError, match=refusal):
        index(tmp_path, tokenizer, rows, overlong="fail")
    found, _ = index(tmp_path, tokenizer, rows, prefill=500, context=30)
    assert found["batches"]["0000"]["dropped"] == {"overlong": 1}
    with pytest.raises(DistillError, match="the teacher's context is 30, of which an answer needs one at least"):
        index(tmp_path, tokenizer, rows, prefill=500, context=30, overlong="fail")


def test_a_prompt_of_just_the_limit_is_taken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens = len(prompt_tokens(tokenizer, [{"role": "user", "content": "hello"}], "tokenizer"))
    for prefill, context, kept in (
        (tokens, 100, 1),
        (100, tokens + 1, 1),
        (tokens - 1, 100, 0),
        (100, tokens, 0),
    ):
        found, _ = index(tmp_path, tokenizer, rows_of(["hello", "a"]), prefill=prefill, context=context)
        assert found["batches"]["0000"]["kept"] == kept + 1


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([], {}, "is empty: nothing to ask"),
        ([{"prompt": " "}, {"prompt": 5}], {}, "has 2 rows and none is a conversation"),
        ([{"prompt": "x " * 50}], {}, r"all of its 1 prompts are left out \(overlong 1\): raise generation"),
        (rows_of(["a", "b", "c"]), {"batch_size": 2, "num_batches": 3},
         r"num_batches is 3, dataset .* has 3 rows, 2 batches of 2: set it to 2 or less, or to all"),
        ([{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}],
         {"chat_template": "none"}, "takes a single user message"),
    ],
)  # fmt: skip
def test_a_dataset_that_gives_no_prompts_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, rows: list, options: dict, complaint: str
) -> None:
    with pytest.raises(DistillError, match=complaint):
        index(tmp_path, tokenizer, rows, **options)


def test_a_changed_row_changes_its_batch_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"t{i}" for i in range(6)]
    before, _ = index(tmp_path, tokenizer, rows_of(texts), batch_size=2)
    texts[3] = "changed"
    after, _ = index(tmp_path, tokenizer, rows_of(texts), batch_size=2)
    same = [before["batches"][name] == after["batches"][name] for name in before["batches"]]
    assert same == [True, False, True]


TEXTS = st.lists(st.text("ab", max_size=3), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, TEXTS, st.integers(1, 4), st.one_of(st.none(), st.integers(0, 3)), st.integers(1, 3))
def test_full_blocks_stay_as_they_were_when_rows_are_appended(
    tmp_path: Path,
    tokenizer: Tokenizer,
    old: list[str],
    new: list[str],
    size: int,
    seed: int | None,
    block: int,
) -> None:
    """Without a shuffle a block is one batch. Every row is read once, kept or dropped, whatever the order."""
    options = {"batch_size": size, "shuffle_seed": seed, "shuffle_block": block}
    if not any(text.strip() for text in old):
        return
    before, _ = index(tmp_path, tokenizer, rows_of(old), **options)
    after, written = index(tmp_path, tokenizer, rows_of(old + new), **options)
    rows_in_block = size * (block if seed is not None else 1)
    for name in [f"{i:04d}" for i in range(len(old) // rows_in_block * rows_in_block // size)]:
        assert before["batches"][name] == after["batches"][name]
    for batch in after["batches"].values():
        assert batch["read"] == batch["kept"] + sum(batch["dropped"].values())
    assert sum(batch["read"] for batch in after["batches"].values()) == len(old + new)
    assert all(batch["read"] == size for batch in list(after["batches"].values())[:-1])
    kept = Counter(row["messages"][0]["content"] for rows in written.values() for row in rows)
    assert kept == Counter({text for text in old + new if text.strip()})


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.one_of(st.none(), st.just(7)))
def test_fewer_batches_are_the_first_of_more(
    tmp_path: Path, tokenizer: Tokenizer, count: int, seed: int | None
) -> None:
    rows = rows_of([f"t{i % 8}" for i in range(10)])
    options = {"batch_size": 2, "shuffle_seed": seed, "shuffle_block": 2}
    every, _ = index(tmp_path, tokenizer, rows, **options)
    some, _ = index(tmp_path, tokenizer, rows, num_batches=count, **options)
    assert some["batches"] == {name: every["batches"][name] for name in list(every["batches"])[:count]}


def test_a_shuffle_permutes_and_never_changes() -> None:
    assert sorted(shuffled(50, 1, 0)) == list(range(50))
    assert len({tuple(shuffled(50, seed, first)) for seed in range(3) for first in (0, 50)}) == 6
    assert shuffled(8, 1, 0) == [7, 1, 5, 2, 0, 3, 6, 4], "datasets on disk depend on it"


def test_the_index_is_the_same_in_every_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = rows_of([f"t{i}" for i in range(7)])
    first, written = index(tmp_path, tokenizer, rows, batch_size=3, shuffle_seed=4)
    again, rewritten = index(tmp_path, tokenizer, rows, batch_size=3, shuffle_seed=4)
    assert json.dumps(first) == json.dumps(again)
    assert written == rewritten
