"""A batch job: every prompt of the file, `num_generations` times, in the schema that readers check."""

from pathlib import Path

import pytest
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.config import Generation, Sampling
from distill.data.schema import read_completions
from distill.errors import DistillError
from distill.files import write_jsonl
from distill.generation.run import generate_batch
from distill.text.chat import prompt_id, prompt_tokens
from distill.text.tokenizer import load_tokenizer

SETTINGS = Generation(max_prefill_length=20, max_target_length=32, num_generations=2, slots=4, seed=3)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    import_checkpoint(tiny_llama(folder / "hf"), folder / "params", dtype="float32", origin="tiny")
    return folder / "params"


def prompts(params: Path, out: Path, words: list[str]) -> Path:
    tokenizer = load_tokenizer(params / "tokenizer")
    turns = [[{"role": "user", "content": word}] for word in words]
    rows = [
        {
            "prompt_id": prompt_id(m),
            "messages": m,
            "prompt_token_ids": prompt_tokens(tokenizer, m, "tokenizer"),
            "reference": m[0]["content"][::-1],
            "original": None,
        }
        for m in turns
    ]
    write_jsonl(out, rows)
    return out


def test_rows_are_prompts_times_samples_in_order(params: Path, tmp_path: Path) -> None:
    words = ["abc", "hello", "you there"]
    said = generate_batch(params, prompts(params, tmp_path / "0000.jsonl", words), tmp_path / "c.parquet", SETTINGS)
    assert "3 prompts, 6 samples" in said
    table, metadata = read_completions(tmp_path / "c.parquet")
    rows = table.to_pylist()
    assert [(row["messages"][0]["content"], row["sample"]) for row in rows] == [(w, s) for w in words for s in (0, 1)]
    assert metadata.seed == 3
    assert metadata.sampling["num_generations"] == 2
    tokenizer = load_tokenizer(params / "tokenizer")
    for row in rows:
        assert row["messages"] == row["prompt"] + row["completion"]
        assert row["reference"] == row["prompt"][0]["content"][::-1]
        ids = row["completion_token_ids"]
        assert len(row["prompt_token_ids"]) + len(ids) <= 32
        stopped = row["finish_reason"] == "stop"
        assert stopped == (ids[-1] in tokenizer.eos_ids)
        assert row["completion"][0]["content"] == tokenizer.decode(ids[:-1] if stopped else ids)


def test_a_batch_is_the_same_bytes_each_time_whatever_else_is_in_it(params: Path, tmp_path: Path) -> None:
    words = ["abc", "hello", "you there", "four", "five"]
    for name in ("a", "b"):
        generate_batch(params, prompts(params, tmp_path / "0.jsonl", words), tmp_path / f"{name}.parquet", SETTINGS)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    generate_batch(params, prompts(params, tmp_path / "1.jsonl", words[::-1]), tmp_path / "c.parquet", SETTINGS)
    by_id = {}
    for name in ("a", "c"):
        rows = read_completions(tmp_path / f"{name}.parquet")[0].to_pylist()
        by_id[name] = {(row["prompt_id"], row["sample"]): row for row in rows}
    assert by_id["a"] == by_id["c"]


def test_greedy_is_asked_for_once(params: Path, tmp_path: Path) -> None:
    greedy = Generation(max_prefill_length=20, max_target_length=32, sampling=Sampling(strategy="greedy"), slots=4)
    generate_batch(params, prompts(params, tmp_path / "0.jsonl", ["abc"]), tmp_path / "a.parquet", greedy)
    generate_batch(
        params, prompts(params, tmp_path / "0.jsonl", ["abc"]), tmp_path / "b.parquet",
        greedy.model_copy(update={"seed": 9}),
    )  # fmt: skip
    tokens = [read_completions(tmp_path / f"{n}.parquet")[0]["completion_token_ids"].to_pylist() for n in "ab"]
    assert tokens[0] == tokens[1]


def test_a_prompt_over_the_prefill_length_is_named(params: Path, tmp_path: Path) -> None:
    batch = prompts(params, tmp_path / "0.jsonl", ["abc", "a" * 30])
    with pytest.raises(DistillError, match="has 32 tokens, max_prefill_length is 20: raise it or let the filter"):
        generate_batch(params, batch, tmp_path / "c.parquet", SETTINGS)
    assert not (tmp_path / "c.parquet").exists()


def test_an_empty_batch_is_an_empty_file(params: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "0.jsonl", [])
    generate_batch(params, tmp_path / "0.jsonl", tmp_path / "c.parquet", SETTINGS)
    assert read_completions(tmp_path / "c.parquet")[0].num_rows == 0
