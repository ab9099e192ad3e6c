"""Servers that are not ours, and rows that nobody answers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_server import JsonHandler, listening
from serving import Running, write_batch

from distill.config.dataset import Dataset
from distill.config.generation import Generation
from distill.data.assemble import assemble
from distill.data.card import CardFacts
from distill.data.schema import read_completions
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.generation.run import generate_batch
from distill.serving import client

SETTINGS = Generation(max_prefill_length=20, max_target_length=48, num_generations=2, slots=4)
FACTS = CardFacts("run", "teacher", None, None)


class Plain(JsonHandler):
    """OpenAI's completions and not more: no token ids, no logprobs, one choice. `troubles` happen first."""

    seen: Counter
    troubles: dict[str, list[int]]  # status codes to answer a prompt with, by its ids

    def do_GET(self) -> None:
        self.say(200, {"data": [{"id": "plain-7b", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.body()
        name = str(body["prompt"])
        self.seen[name, body["seed"], body.get("n", 1), body["model"]] += 1
        status = troubles.pop(0) if (troubles := self.troubles.get(name)) else 200
        if status == 200:
            self.say(
                200, {"choices": [{"index": 0, "text": f"{body['seed']}", "finish_reason": "stop", "logprobs": None}]}
            )
        else:
            self.say(status, {"error": {"message": f"trouble {status}"}}, Retry_After="0.1")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Plain]]]:
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.1)
    handler = type("Handler", (Plain,), {"seen": Counter(), "troubles": {}})
    with listening(handler) as url:
        yield f"{url}/v1", handler


def run(params: Path, folder: Path, endpoint: str, **changes: object) -> tuple[str, list[dict], object]:
    """What the job says, its rows and the file's metadata, for three prompts."""
    settings = Generation.model_validate(SETTINGS.model_dump(exclude_defaults=True) | {"endpoint": endpoint} | changes)
    prompts, out = write_batch(params, folder / "0000.jsonl", 3), folder / "0000.parquet"
    said = generate_batch(params, prompts, out, settings, work=folder / "samples")
    table, metadata = read_completions(out)
    return said, table.to_pylist(), metadata


def test_a_foreign_server_is_asked_one_sample_at_a_time_and_marked(params: Path, tmp_path: Path, plain: tuple) -> None:
    endpoint, handler = plain
    _, rows, metadata = run(params, tmp_path, endpoint)
    assert len(handler.seen) == 6
    assert {(n, model) for _, _, n, model in handler.seen} == {(1, "plain-7b")}
    assert all(0 <= seed < 2**63 for _, seed, _, _ in handler.seen)
    assert metadata.foreign == "plain-7b"
    assert metadata.encode()["distill.reproducible"] == "false"
    assert len({row["completion"][0]["content"] for row in rows}) == 6
    assert {row["completion_token_ids"] for row in rows} == {row["logprobs"] for row in rows} == {None}
    assert "6 of them known" in run(params, tmp_path, endpoint)[0]


def test_a_foreign_server_is_not_asked_for_logits(params: Path, tmp_path: Path, plain: tuple) -> None:
    endpoint, handler = plain
    with pytest.raises(DistillError, match="is not ours and tells no logsumexp: leave generation's top_logits"):
        run(params, tmp_path, endpoint, top_logits=4)
    assert not handler.seen


def test_passing_troubles_are_outlasted(params: Path, tmp_path: Path, plain: tuple) -> None:
    endpoint, handler = plain
    ids = [str(row["prompt_token_ids"]) for row in read_jsonl(write_batch(params, tmp_path / "b.jsonl", 3))]
    handler.troubles |= {ids[0]: [500, 502], ids[1]: [429] * 12, ids[2]: [503, 500]}
    assert len(run(params, tmp_path, endpoint)[1]) == 6


@pytest.mark.parametrize("troubles", [[400], [500] * 8])
def test_a_row_without_an_answer_is_set_aside_up_to_the_limit(
    params: Path, tmp_path: Path, plain: tuple, troubles: list[int]
) -> None:
    endpoint, handler = plain
    prompts = read_jsonl(write_batch(params, tmp_path / "b.jsonl", 3))
    bad = prompts[1]["prompt_id"]
    handler.troubles[str(prompts[1]["prompt_token_ids"])] = [*troubles, *troubles]
    with pytest.raises(
        DistillError, match=rf"prompt {bad} got no answer \({troubles[0]}: trouble .*max_failed_rows, 0"
    ):
        run(params, tmp_path, endpoint)
    assert not (tmp_path / "0000.parquet").exists()
    # More than two samples can use up: a request of the run before may still take one.
    handler.troubles[str(prompts[1]["prompt_token_ids"])] = troubles * 10
    said, rows, metadata = run(params, tmp_path, endpoint, max_failed_rows=1)
    assert "1 prompts without an answer" in said
    assert [row["prompt_id"] for row in rows] == [p["prompt_id"] for p in (prompts[0], prompts[2]) for _ in range(2)]
    assert [prompt for prompt, _ in metadata.failed] == [bad]
    index = {"source": {"source": "x"}, "batches": {"0000": {"read": 3, "kept": 3, "dropped": {}}}}
    ledger = assemble([tmp_path / "0000.parquet"], index, Dataset(), 2, FACTS, tmp_path / "dataset")
    assert ledger.samples.encode("asked") == {"asked": 6, "kept": 4, "dropped": {"failed": 2}}
    handler.troubles.clear()
    said, rows, _ = run(params, tmp_path, endpoint)
    assert len(rows) == 6
    assert "4 of them known" in said


def test_our_server_elsewhere_must_have_the_recipes_settings(
    params: Path, tmp_path: Path, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DistillError, match="its key goes into DISTILL_API_KEY"):
        run(params, tmp_path, server.url)
    monkeypatch.setenv("DISTILL_API_KEY", "secret")
    with pytest.raises(DistillError, match="has max_length 1024, the recipe 48"):
        run(params, tmp_path, server.url)
    _, rows, metadata = run(params, tmp_path, server.url, max_target_length=1024)
    assert metadata.foreign is None
    assert all(row["logprobs"] for row in rows)


@pytest.mark.parametrize(
    ("url", "said"),
    [("gpu:8000", "is no URL"), ("http://me:pw@gpu", "not into the URL"), ("http://gpu?key=1", "not into the URL")],
)
def test_odd_endpoints(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Generation(endpoint=url)


def test_nobody_is_there(params: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="does not answer"):
        run(params, tmp_path, "http://127.0.0.1:9")
