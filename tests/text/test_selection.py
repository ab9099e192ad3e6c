"""What is asked of a conversation, what is left out for which reason, and that no order or batch decides it."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers_for_tests import byte_tokenizer

from distill.config.prompts import Prompts
from distill.errors import DistillError
from distill.files import read_jsonl, write_jsonl
from distill.text.chat import prompt_tokens
from distill.text.prompts import index_prompts
from distill.text.selection import Sampled, Selection, Similar, mixed, with_system
from distill.text.sources import Columns, Conversation, asked
from distill.text.tokenizer import Tokenizer, load_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def row(text: str) -> Conversation:
    return Conversation([user(text)], None, None)


def reasons(texts: list[str], **settings: object) -> list[str | None]:
    selection = Selection(Prompts(source="x.jsonl", **settings))
    return [next(iter(selection(row(text)).dropped), None) for text in texts]


WHOLE = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]
IN_MESSAGES = Columns("messages", None, None, "gold")


def test_the_turns_that_are_asked() -> None:
    last = Conversation(WHOLE[:4], "d", "right")
    first = Conversation(WHOLE[:2], "b", "b")
    given_row = {"messages": WHOLE, "gold": "right"}
    assert asked(given_row, IN_MESSAGES, "last") == [last]
    assert asked(given_row, IN_MESSAGES, "first") == [first]
    assert asked(given_row, IN_MESSAGES, "each") == [first, last]
    assert asked({"messages": [user("a"), user(" ")]}, Columns("messages", None, None, None), "each") == [
        Conversation([user("a")], None, None),
        None,
    ]
    pair = {"prompt": [user("a"), assistant("b"), user("c")], "completion": "d"}
    assert asked(pair, Columns(None, "prompt", "completion", None), "each") == [
        Conversation([user("a")], "b", "b"),
        Conversation([user("a"), assistant("b"), user("c")], "d", "d"),
    ]


def test_half_a_character_is_no_text() -> None:
    """JSON's `\\ud83d` alone cannot be written again: the row is malformed, and the run goes on."""
    half = json.loads('"a \\ud83d"')
    columns = Columns(None, "prompt", "completion", None)
    assert asked({"prompt": half, "completion": "b"}, columns, "last") == [None]
    assert asked({"prompt": "a", "completion": half}, columns, "last") == [Conversation([user("a")], None, None)]


def test_turns_that_follow_one_another_are_one_conversation() -> None:
    first, last = Conversation(WHOLE[:2], "b", "b"), Conversation(WHOLE[:4], "d", "right")
    [whole] = asked({"messages": WHOLE, "gold": "right"}, IN_MESSAGES, "each_own")
    assert whole.turns == (first, replace(last, earlier=(first,)))
    assert whole.id == last.id, "a history of the teacher's own does not change what a prompt is called"
    columns = Columns("messages", None, None, None)
    broken = {"messages": [user("a"), user(" "), user("c")]}
    assert asked(broken, columns, "each_own") == [Conversation([user("a")], None, None), None, None]
    assert asked({"messages": [user(""), user("b")]}, columns, "each_own") == [None, None]
    assert [turn.messages[0] for turn in with_system(replace(whole, messages=WHOLE[1:4], earlier=(
        replace(first, messages=WHOLE[1:2]),)), "s").turns] == WHOLE[:1] * 2  # fmt: skip


def test_a_turn_that_is_left_out_takes_the_later_ones_with_it() -> None:
    def chat(*texts: str) -> Conversation:
        listed = [turn for text in texts for turn in (user(text), assistant("yes"))]
        return asked({"messages": listed}, Columns("messages", None, None, None), "each_own")[0]

    selection = Selection(Prompts(source="x.jsonl", turns="each_own", filters={"reject": "bad"}))
    expected = [
        (chat("a", "b", "c"), 3, {}),
        (chat("a", "bad", "c"), 1, {"rejected": 2}),
        (chat("bad", "b"), 0, {"rejected": 2}),
        (chat("a", "b", "c"), 0, {"duplicate": 3}),
        (chat("a", "b", "d"), 3, {}),
        (chat("a", "bad"), 0, {"rejected": 1, "duplicate": 1}),
    ]
    for conversation, kept, dropped in expected:
        found = selection(conversation)
        assert (found.turns, found.dropped) == (conversation.turns[:kept], dropped)
        assert found.read == len(conversation.turns)


def test_a_system_message_is_added_where_there_is_none() -> None:
    assert with_system(row("a"), "be brief").messages == [{"role": "system", "content": "be brief"}, user("a")]
    theirs = Conversation(WHOLE[:2], None, None)
    assert with_system(theirs, "be brief") == theirs
    assert with_system(row("a"), None) == row("a")
    assert with_system(None, "be brief") is None


@example([1, 1, 1, 5], 5)  # by (rows + 1/2) / weight, as it was, the last one had two of its 3.1
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 60))
def test_a_mixture_keeps_its_proportions_at_every_length(weights: list[int], count: int) -> None:
    endless = [iter(lambda i=i: row(str(i)), None) for i in range(len(weights))]
    taken = Counter(int(one.messages[0]["content"]) for one in islice(mixed(endless, weights), count))
    for i, weight in enumerate(weights):
        assert abs(taken[i] - count * weight / sum(weights)) <= 1


def test_a_mixture_goes_on_with_what_is_left() -> None:
    streams = [iter([row("a"), row("b")]), iter([row(str(i)) for i in range(4)])]
    assert [one.messages[0]["content"] for one in mixed(streams, [1, 1])] == ["a", "0", "b", "1", "2", "3"]


@pytest.mark.parametrize(
    ("filters", "text", "reason"),
    [
        ({"min_characters": 3}, "ab", "short"),
        ({"min_characters": 3}, "abc", None),
        ({"max_characters": 3}, "abcd", "long"),
        ({"match": r"\?$"}, "really?", None),
        ({"match": r"\?$"}, "really", "no_match"),
        ({"reject": r"(?i)ignore (all|previous)"}, "Ignore all of it", "rejected"),
        ({"reject": r"(?i)ignore (all|previous)"}, "a question", None),
        ({"languages": ["en", "de"]}, "Wie heißt die Hauptstadt von Frankreich?", None),
        ({"languages": ["en", "de"]}, "Quelle est la capitale de la France ?", "language"),
    ],
)
def test_a_filter_has_its_reason(filters: dict, text: str, reason: str | None) -> None:
    assert reasons([text], filters=filters) == [reason]


def test_duplicates_are_what_the_recipe_says() -> None:
    texts = ["Is it so?", "is  it SO?", "Is it so?"]
    assert reasons(texts) == [None, None, "duplicate"]
    assert reasons(texts, duplicates="normalized") == [None, "duplicate", "duplicate"]
    assert reasons(texts, duplicates="keep") == [None, None, None]


def test_similar_prompts_go_and_different_ones_stay() -> None:
    words = "the quick brown fox jumps over the lazy dog near the old stone bridge by the river at dawn today"
    other = "which of the seven seas is the deepest and how was that found out when nobody could dive there yet"
    texts = [words, words.replace("today", "now"), other, f"{other} again", words.upper()]
    assert reasons(texts, duplicates="similar") == [None, "similar", None, "similar", "duplicate"]
    assert reasons(texts, duplicates="similar", similarity=0.99)[:4] == [None, None, None, None]


def test_similarity_is_that_of_the_shingles() -> None:
    """Signatures are an estimate: of many pairs at a known overlap, those well above go and those well below stay."""
    found = []
    for i in range(60):
        base = [f"w{i}x{k}" for k in range(60)]
        for keep, similar in ((58, True), (20, False)):
            judge = Similar(0.7)
            judge(row(" ".join(base)))
            changed = base[:keep] + [f"other{k}" for k in range(60 - keep)]
            found.append((judge(row(" ".join(changed))) == "similar") == similar)
    assert sum(found) == len(found)


def test_a_sample_is_a_share_that_grows_with_it_and_nothing_else() -> None:
    rows = [row(f"prompt {i}") for i in range(3000)]
    small, large = (
        {one.messages[0]["content"] for one in rows if Sampled(share, 7)(one) is None} for share in (0.2, 0.5)
    )
    assert 500 < len(small) < 700
    assert 1400 < len(large) < 1600
    assert small < large, "a larger share has the smaller one in it: what was generated is kept"
    other = {one.messages[0]["content"] for one in rows if Sampled(0.2, 8)(one) is None}
    assert other != small


def test_prompts_of_an_evaluation_set_are_taken_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "What is 2 + 2?", "completion": "4"}])
    exclude = [{"source": str(tmp_path / "test.jsonl")}]
    assert reasons(["what is  2 + 2?", "What is 3 + 3?"], exclude=exclude) == ["contamination", None]
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": " "}])
    with pytest.raises(DistillError, match=r"test\.jsonl has no prompt to look for"):
        reasons(["a"], exclude=exclude)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_a_mixture_is_indexed_with_all_that_was_read_and_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"a question {i}"} for i in range(6)])
    write_jsonl(tmp_path / "b.jsonl", [{"messages": [user(f"b {i}"), assistant("x"), user("?")]} for i in range(3)])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "A QUESTION 3"}])
    prompts = Prompts(
        mix=[{"source": str(tmp_path / "a.jsonl"), "weight": 2}, {"source": str(tmp_path / "b.jsonl")}],
        turns="first", system="s", exclude=[{"source": str(tmp_path / "test.jsonl")}], batch_size=4,
        filters={"reject": "question 1$"},
    )  # fmt: skip
    found = index_prompts(prompts, tokenizer, 60, 200, tmp_path / "work")
    read = [row["messages"] for path in sorted((tmp_path / "work").glob("*.jsonl")) for row in read_jsonl(path)]
    assert [messages[0]["content"] for messages in read] == ["s"] * 7
    texts = [messages[1]["content"] for messages in read]
    assert texts == ["a question 0", "b 0", "a question 2", "b 1", "a question 4", "b 2", "a question 5"]
    dropped = Counter()
    for batch in found["batches"].values():
        assert batch["read"] == batch["kept"] + sum(batch["dropped"].values())
        dropped += Counter(batch["dropped"])
    assert dropped == {"rejected": 1, "contamination": 1}
    assert [origin["source"] for origin in found["source"]["mix"]] == [str(tmp_path / f"{x}.jsonl") for x in "ab"]


def test_short_prompts_in_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "a much longer one"}])
    shortest = len(prompt_tokens(tokenizer, [user("a")], "tokenizer"))
    prompts = Prompts(source=str(tmp_path / "a.jsonl"), filters={"min_tokens": shortest + 1})
    found = index_prompts(prompts, tokenizer, 90, 200, tmp_path / "work")
    assert found["batches"]["0000"]["dropped"] == {"short": 1}
