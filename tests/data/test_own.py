"""Completions that came with the prompts go the way of a teacher's."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distill.config.dataset import Dataset
from distill.data import own
from distill.data.assemble import assemble
from distill.data.card import CardFacts
from distill.data.own import take_completions
from distill.data.schema import read_completions
from distill.files import write_jsonl


class Info:
    digest = "ab" * 32
    tokenizer_hash = "cd" * 32


def test_own_completions_are_filtered_counted_and_told_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "read_info", lambda folder: Info)
    rows = [
        {"prompt_id": f"p{i}", "messages": [{"role": "user", "content": f"q{i}"}], "prompt_token_ids": [1],
         "reference": None, "original": answer}
        for i, answer in enumerate(["<think>hm</think>yes", "no", None, " "])
    ]  # fmt: skip
    write_jsonl(tmp_path / "0000.jsonl", rows)
    said = take_completions(tmp_path, tmp_path / "0000.jsonl", tmp_path / "0000.parquet")
    assert said == "3 completions that came with their prompts, 1 prompts without one"
    table, metadata = read_completions(tmp_path / "0000.parquet")
    assert metadata.foreign == "own"
    assert table["logprobs"].null_count == 3
    index = {"source": {"source": "mine.jsonl"}, "batches": {"0000": {"read": 4, "kept": 4, "dropped": {}}}}
    ledger = assemble(
        [tmp_path / "0000.parquet"], index, Dataset(completions="own", think="drop", provenance=True), 1,
        CardFacts("demo", "acme/teacher", None, None), tmp_path / "dataset",
    )  # fmt: skip
    assert ledger.samples.dropped == {"failed": 1, "empty": 1}
    card = (tmp_path / "dataset/README.md").read_text()
    assert "answers that came with their prompts" in card
    assert "acme/teacher" not in card
    assert "`completion` the answer that it came with" in card
    said = " ".join(card.split())
    assert "No teacher was asked, so that `finish_reason`, `teacher` and `seed` are the same in all rows" in said
    assert "The same prompts and filters give the same rows." in card
    assert "tags" not in card, "who wrote them is not known"
    for told in ("the teacher's answer", "the teacher's digest", "same teacher", "were asked for"):
        assert told not in said
    rows = pq.read_table(tmp_path / "dataset/data").to_pylist()
    assert {(row["finish_reason"], row["teacher"], row["seed"], row["sample"]) for row in rows} == {
        ("stop", "own", 0, 0)
    }
    assert {(row["mean_logprob"], row["completion_tokens"]) for row in rows} == {(None, None)}
