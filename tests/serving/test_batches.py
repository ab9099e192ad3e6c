"""A batch job: every prompt `num_generations` times, the same bytes whoever asks, and however often it is killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving import SCRIPTS, until, write_batch

from distill.config.generation import Generation, Sampling
from distill.data.schema import read_completions
from distill.data.topk import Told, unpack_ids
from distill.errors import DistillError
from distill.files import read_jsonl, write_jsonl
from distill.generation.run import generate_batch
from distill.serving.shared import files_of, leave_servers
from distill.text.chat import prompts_tokens
from distill.text.tokenizer import load_tokenizer

SETTINGS = Generation(max_prefill_length=20, max_target_length=48, num_generations=2, slots=8, seed=3)


@pytest.fixture(scope="module", autouse=True)
def one_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All tests here share what they start; at the end it is told to go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield
        leave_servers()


@pytest.fixture(autouse=True)
def like_a_user(one_server: None, compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the folder's fixture, which gives each test servers of its own."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent / "lib"))


def generate(params: Path, prompts: Path, work: Path, settings: Generation = SETTINGS, out: Path | None = None) -> Path:
    out = out or work / f"{prompts.stem}.parquet"
    generate_batch(params, prompts, out, settings, work=work / "samples", idle_seconds=30)
    return out


def test_rows_are_prompts_times_samples_in_order(params: Path, tmp_path: Path) -> None:
    prompts = read_jsonl(write_batch(params, tmp_path / "0000.jsonl", 5))
    table, metadata = read_completions(generate(params, tmp_path / "0000.jsonl", tmp_path))
    rows = table.to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p["prompt_id"], s) for p in prompts for s in (0, 1)]
    assert (metadata.seed, metadata.sampling["num_generations"], metadata.foreign) == (3, 2, None)
    assert not {"endpoint", "idle_seconds", "max_failed_rows"} & metadata.sampling.keys()
    tokenizer = load_tokenizer(params / "tokenizer")
    for row in rows:
        assert row["messages"] == row["prompt"] + row["completion"]
        ids = row["completion_token_ids"]
        assert len(row["prompt_token_ids"]) + len(ids) <= 48
        stopped = row["finish_reason"] == "stop"
        assert stopped == (ids[-1] in tokenizer.eos_ids)
        assert row["completion"][0]["content"] == tokenizer.decode(ids[:-1] if stopped else ids)


def test_eight_batches_at_once_are_the_same_bytes_as_one_after_the_other(params: Path, tmp_path: Path) -> None:
    batches = [write_batch(params, tmp_path / f"000{i}.jsonl", 12, start=12 * i) for i in range(8)]
    alone = [generate(params, batch, tmp_path / "alone").read_bytes() for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: generate(params, batch, tmp_path / "together").read_bytes(), batches))
    assert together == alone


def test_what_the_journal_knows_is_not_asked_again(params: Path, tmp_path: Path) -> None:
    write_batch(params, tmp_path / "0000.jsonl", 6)
    journal, out = tmp_path / "samples", tmp_path / "c.parquet"

    def said(prompts: str = "0000", **changes: object) -> str:
        settings = SETTINGS.model_copy(update=changes)
        return generate_batch(params, tmp_path / f"{prompts}.jsonl", out, settings, work=journal, idle_seconds=30)

    assert "known" not in said()
    first = out.read_bytes()
    assert "12 samples, 12 of them known" in said()
    assert out.read_bytes() == first
    assert "24 samples, 12 of them known" in said(num_generations=4)
    wide = read_completions(out)[0].to_pylist()
    assert [row for row in wide if row["sample"] < 2] == _rows(first, tmp_path)
    shutil.rmtree(journal)
    said(num_generations=4)
    assert read_completions(out)[0].to_pylist() == wide
    assert "known" not in said(sampling=Sampling(temperature=0.5))
    assert "known" not in said(seed=4)
    write_jsonl(tmp_path / "0001.jsonl", read_jsonl(tmp_path / "0000.jsonl")[::-1])
    assert "12 of them known" in said("0001"), "a reordered dataset asks for nothing"


def _rows(content: bytes, folder: Path) -> list[dict]:
    (folder / "bytes.parquet").write_bytes(content)
    return read_completions(folder / "bytes.parquet")[0].to_pylist()


def test_a_turn_with_the_teacher_s_own_history_is_answered_as_if_asked_alone(params: Path, tmp_path: Path) -> None:
    prompts = read_jsonl(write_batch(params, tmp_path / "0000.jsonl", 3))
    tokenizer = load_tokenizer(params / "tokenizer")
    for i, first in zip((1, 3, 5), prompts[:], strict=True):
        turn = {"role": "user", "content": f"and {i}"}
        said = {"role": "assistant", "content": "theirs"}
        prompts.insert(i, first | {
            "prompt_id": f"later{i}", "messages": [*first["messages"], said, turn], "prompt_token_ids": None,
            "follows": first["prompt_id"],
        })  # fmt: skip
    write_jsonl(tmp_path / "0000.jsonl", prompts)
    roomy = SETTINGS.model_copy(update={"max_prefill_length": 44})
    out = generate(params, tmp_path / "0000.jsonl", tmp_path, roomy)
    table, metadata = read_completions(out)
    rows = {(row["prompt_id"], row["sample"]): row for row in table.to_pylist()}
    assert len(rows) + len(metadata.unasked) == 12
    later = [row for (name, _), row in rows.items() if name.startswith("later")]
    assert later, "some first answers end in time"
    alone = [{"prompt_id": row["prompt_id"], "messages": row["prompt"], "reference": None, "original": None,
              "prompt_token_ids": prompts_tokens(tokenizer, [row["prompt"]], "tokenizer")[0]}
             for row in later if row["sample"] == 0]  # fmt: skip
    write_jsonl(tmp_path / "alone.jsonl", alone)
    again = read_completions(generate(params, tmp_path / "alone.jsonl", tmp_path / "alone", roomy))[0].to_pylist()
    assert [row for row in again if row["sample"] == 0] == [row for row in later if row["sample"] == 0]
    first = out.read_bytes()
    said = generate_batch(params, tmp_path / "0000.jsonl", out, roomy, work=tmp_path / "samples", idle_seconds=30)
    assert (out.read_bytes(), f"{len(rows)} of them known" in said) == (first, True)


def test_greedy_needs_no_seed(params: Path, tmp_path: Path) -> None:
    write_batch(params, tmp_path / "0.jsonl", 1)
    tokens = []
    for seed in (0, 9):
        greedy = SETTINGS.model_copy(
            update={"sampling": Sampling(strategy="greedy"), "num_generations": 1, "seed": seed}
        )
        out = generate(params, tmp_path / "0.jsonl", tmp_path, greedy, tmp_path / f"{seed}.parquet")
        tokens.append(read_completions(out)[0]["completion_token_ids"].to_pylist())
    assert tokens[0] == tokens[1]


def test_a_prompt_over_the_prefill_length_is_named(params: Path, tmp_path: Path) -> None:
    batch = write_batch(params, tmp_path / "0.jsonl", 2)
    short = SETTINGS.model_copy(update={"max_prefill_length": 5})
    with pytest.raises(DistillError, match="tokens, max_prefill_length is 5: raise it or let the filter"):
        generate(params, batch, tmp_path, short)
    assert not (tmp_path / "0.parquet").exists()


def test_an_empty_batch_is_an_empty_file(params: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "0.jsonl", [])
    assert read_completions(generate(params, tmp_path / "0.jsonl", tmp_path))[0].num_rows == 0


@pytest.mark.slow
def test_killed_at_random_moments(params: Path, tmp_path: Path) -> None:
    """Client and server in turn get kill -9; the file is the one that an undisturbed job writes."""
    prompts = write_batch(params, tmp_path / "0000.jsonl", 120)
    calm = generate(params, prompts, tmp_path / "calm").read_bytes()
    out, chance = tmp_path / "c.parquet", random.Random(4)
    command = [
        sys.executable, SCRIPTS / "generate.py", "--teacher", params, "--prompts", prompts, "--out", out,
        "--generation", SETTINGS.model_dump_json(exclude_defaults=True), "--work", tmp_path / "work",
        "--idle-seconds", "30",
    ]  # fmt: skip
    files = files_of(params, 8, 48)
    for victim in ("client", "server", "client", "server"):
        with (
            (tmp_path / "log").open("w") as log,
            subprocess.Popen(list(map(str, command)), stderr=log, stdout=log) as client,
        ):
            before = _lines(tmp_path / "work")
            until(lambda client=client, before=before: client.poll() is not None or _lines(tmp_path / "work") > before)
            time.sleep(chance.uniform(0, 0.2))
            if victim == "client":
                client.kill()
            elif server := files.read():
                os.kill(server.pid, signal.SIGKILL)
        if victim == "server":
            assert client.returncode == 0, (tmp_path / "log").read_text()
    assert subprocess.run(list(map(str, command)), check=False, capture_output=True).returncode == 0
    assert out.read_bytes() == calm


def _lines(work: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in work.glob("*/*.jsonl"))


def test_a_client_loads_neither_jax_nor_transformers() -> None:
    told = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", told, str(SCRIPTS / "generate.py")]
    modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "distill.serving.client" in modules
    assert not {"jax", "transformers", "tokenizers", "torch", "pyarrow", "uvicorn"} & set(modules)


def test_a_client_writes_its_rows_without_pandas() -> None:
    rows = "import pyarrow; print(pyarrow.Table.from_pylist([{'a': [1]}]).num_rows, 'pandas' in sys.modules)"
    alone = "with contextlib.suppress(SystemExit): runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    told = f"import contextlib, sys, runpy\n{alone}\n{rows}"
    command = [sys.executable, "-c", told, str(SCRIPTS / "generate.py")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "1 False\n"


@pytest.mark.slow
def test_logits_are_stored_with_the_tokens_and_a_killed_batch_keeps_them(params: Path, tmp_path: Path) -> None:
    """The bytes of a batch do not depend on which of its samples came from the journal."""
    told = SETTINGS.model_copy(update={"top_logits": 5, "sampled_logits": 9})
    prompts = write_batch(params, tmp_path / "0000.jsonl", 6)
    whole = generate(params, prompts, tmp_path / "whole", told)
    (journal,) = (tmp_path / "whole/samples").glob("*/0000.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut/samples" / journal.parent.name
    cut.mkdir(parents=True)
    (cut / "0000.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert generate(params, prompts, tmp_path / "cut", told).read_bytes() == whole.read_bytes()
    table, metadata = read_completions(whole)
    assert metadata.logits == Told(5, 9, 35)
    plain = read_completions(generate(params, prompts, tmp_path / "plain"))[0]
    assert table.select(plain.column_names).drop_columns(["logprobs"]) == plain.drop_columns(["logprobs"])
    for row in table.to_pylist():
        ids = unpack_ids(np.frombuffer(b"".join(row["top_ids"]), np.uint8).reshape(-1, 10), 5, 35)
        logprobs = np.frombuffer(b"".join(row["top_logprobs"]), "<f2").reshape(-1, 5)
        assert len(ids) == len(row["completion_token_ids"]) == len(row["logsumexp"]) == len(row["sampled_ids"])
        own = ids == np.asarray(row["completion_token_ids"])[:, None]
        told_of_it = np.where(own, logprobs, np.nan)
        wanted = np.broadcast_to(np.asarray(row["logprobs"])[:, None], own.shape)
        np.testing.assert_allclose(told_of_it[own], wanted[own], rtol=2**-11, atol=1e-6)


def test_more_logits_than_the_vocabulary_has_are_refused(params: Path, tmp_path: Path) -> None:
    told = SETTINGS.model_copy(update={"top_logits": 36})
    with pytest.raises(DistillError, match="36 logits a token are asked for, the teacher has 35: lower"):
        generate(params, write_batch(params, tmp_path / "0000.jsonl", 1), tmp_path, told)
