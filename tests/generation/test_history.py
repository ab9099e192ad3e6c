"""Turns that are asked one after the other: each sample goes on from its own answers, and nothing is asked twice."""

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest
from plain_server import JsonHandler, listening
from tokenizers_for_tests import LLAMA3, byte_tokenizer

from distill.checkpoints.info import ModelInfo, write_info
from distill.config.dataset import Dataset
from distill.config.generation import Generation
from distill.config.prompts import Prompts
from distill.data.assemble import assemble
from distill.data.card import CardFacts
from distill.data.schema import read_completions
from distill.errors import DistillError
from distill.files import read_json, read_jsonl, write_json, write_jsonl
from distill.generation.history import rounds
from distill.generation.run import generate_batch
from distill.models.config import Layer, ModelConfig, Rope
from distill.text.chat import prompt_tokens
from distill.text.prompts import index_prompts
from distill.text.tokenizer import Tokenizer, load_tokenizer

ARCHITECTURE = ModelConfig(
    family="llama", vocab_size=400, hidden=8, ffn=8, heads=1, kv_heads=1, head_dim=8, layers=(Layer(),),
    ropes=(Rope(theta=1e4, width=8),), max_positions=400, norm_eps=1e-5, attention_scale=1.0,
)  # fmt: skip
SYSTEM = {"role": "system", "content": "short"}


class Echo(JsonHandler):
    """OpenAI's completions: an answer is told by the prompt's ids and the seed. `says` changes some of them."""

    seen: Counter
    says: dict[str, tuple[str, str]]  # text and finish_reason, by the prompt's last words

    def do_GET(self) -> None:
        self.say(200, {"data": [{"id": "echo", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.body()
        self.seen[tuple(body["prompt"]), body["seed"]] += 1
        asked = self.tokenizer.decode(body["prompt"])
        said = next((v for k, v in self.says.items() if asked.removesuffix("assistant\n\n").endswith(k)), None)
        if said and said[1] == "error":
            self.say(400, {"error": "refused"})
            return
        text = blake2b(f"{body['prompt']} {body['seed']}".encode(), digest_size=2).hexdigest()
        text, reason = said or (text, "stop")
        self.say(200, {"choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}]})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A params folder without weights, which only a server would need."""
    folder = tmp_path_factory.mktemp("teacher")
    byte_tokenizer(folder / "tokenizer", LLAMA3)
    write_info(folder, ModelInfo(
        source="x", dtype="float32", architecture=ARCHITECTURE, hf_config={}, parameters=1, vocab_size=400,
        real_vocab=400, eos_ids=[2], tokenizer_hash="t", digest="d",
    ))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tokenizer(teacher: Path) -> Tokenizer:
    return load_tokenizer(teacher / "tokenizer")


@pytest.fixture
def echo(tokenizer: Tokenizer) -> Iterator[tuple[str, type[Echo]]]:
    handler = type("Handler", (Echo,), {"seen": Counter(), "says": {}, "tokenizer": tokenizer})
    with listening(handler) as url:
        yield url, handler


CHATS = [["one", "two", "three"], ["alone"], ["four", "five"]]


def batch(folder: Path, tokenizer: Tokenizer) -> Path:
    """The prompts file of conversations under one system message, as it is made; index.json beside it."""
    listed = []
    for texts in CHATS:
        turns = [{"role": r, "content": c} for t in texts for r, c in (("user", t), ("assistant", f"theirs {t}"))]
        listed.append({"messages": [SYSTEM, *turns]})
    write_jsonl(folder / "chats.jsonl", listed)
    prompts = Prompts(source=str(folder / "chats.jsonl"), turns="each_own")
    write_json(folder / "index.json", index_prompts(prompts, tokenizer, 200, 400, folder / "prompts"))
    return folder / "prompts/0000.jsonl"


def generate(teacher: Path, folder: Path, endpoint: str, **changes: object) -> tuple[str, list[dict], object]:
    settings = Generation(**{"max_prefill_length": 200, "max_target_length": 300, "num_generations": 2, "slots": 4,
                             "endpoint": endpoint} | changes)  # fmt: skip
    out = folder / "0000.parquet"
    said = generate_batch(teacher, folder / "prompts/0000.jsonl", out, settings, work=folder / "samples")
    table, metadata = read_completions(out)
    return said, table.to_pylist(), metadata


def test_each_sample_goes_on_from_its_own_answers(
    teacher: Path, tokenizer: Tokenizer, tmp_path: Path, echo: tuple
) -> None:
    endpoint, handler = echo
    prompts = read_jsonl(batch(tmp_path, tokenizer))
    said, rows, metadata = generate(teacher, tmp_path, endpoint)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p["prompt_id"], s) for p in prompts for s in (0, 1)]
    assert metadata.unasked == []
    by = {(row["prompt"][-1]["content"], row["sample"]): row for row in rows}
    for texts in CHATS:
        for sample in (0, 1):
            history = [SYSTEM]
            for text in texts:
                row = by[text, sample]
                history = [*history, {"role": "user", "content": text}]
                assert row["prompt"] == history
                assert row["prompt_token_ids"] == prompt_tokens(tokenizer, history, "tokenizer")
                history = [*history, *row["completion"]]
                assert row["messages"] == history
                assert row["reference"] == f"theirs {text}"
    assert by["three", 0]["prompt"] != by["three", 1]["prompt"]
    asked = {ids for ids, _ in handler.seen}
    assert {tuple(row["prompt_token_ids"]) for row in rows} == asked
    assert (len(handler.seen), set(handler.seen.values()), "known" in said) == (12, {1}, False)


def test_what_is_known_is_not_asked_again(teacher: Path, tokenizer: Tokenizer, tmp_path: Path, echo: tuple) -> None:
    endpoint, handler = echo
    batch(tmp_path, tokenizer)
    generate(teacher, tmp_path, endpoint)
    first = (tmp_path / "0000.parquet").read_bytes()
    [journal] = (tmp_path / "samples").glob("*/0000.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept in (12, 7, 3):  # as a kill leaves it: in the second turn, and in the first
        journal.write_bytes(b"".join(lines[:kept]))
        handler.seen.clear()
        said, *_ = generate(teacher, tmp_path, endpoint)
        assert (tmp_path / "0000.parquet").read_bytes() == first
        assert sum(handler.seen.values()) == 12 - kept
        assert f"12 samples, {kept} of them known" in said
    handler.seen.clear()
    _, wide, _ = generate(teacher, tmp_path, endpoint, num_generations=4)
    assert sum(handler.seen.values()) == 12, "2 samples widened to 4 ask for the new ones"
    (tmp_path / "narrow.parquet").write_bytes(first)
    assert [row for row in wide if row["sample"] < 2] == read_completions(tmp_path / "narrow.parquet")[0].to_pylist()


def test_an_answer_that_is_no_history_ends_its_own_sample_alone(
    teacher: Path, tokenizer: Tokenizer, tmp_path: Path, echo: tuple
) -> None:
    endpoint, handler = echo
    prompts = {row["messages"][-1]["content"]: row["prompt_id"] for row in read_jsonl(batch(tmp_path, tokenizer))}
    _, rows, _ = generate(teacher, tmp_path, endpoint)
    handler.says |= {"four": ("cut o", "length"), "alone": (" ", "stop")}
    second = next(r for r in rows if r["prompt"][-1]["content"] == "two" and r["sample"] == 1)
    handler.says[f"{second['prompt'][2]['content']}user\n\ntwo"] = ("long " * 60, "stop")
    (tmp_path / "again").mkdir()
    batch(tmp_path / "again", tokenizer)
    _, rows, metadata = generate(teacher, tmp_path / "again", endpoint)
    assert metadata.unasked == [
        (prompts["three"], 1, "overlong"), (prompts["five"], 0, "unanswered"), (prompts["five"], 1, "unanswered"),
    ]  # fmt: skip
    assert len(rows) == 9
    files = [tmp_path / "again/0000.parquet"]
    how = (read_json(tmp_path / "again/index.json"), Dataset(), 2, CardFacts("r", "t", None, None), tmp_path / "set")
    ledger = assemble(files, *how)
    assert ledger.prompts.encode("read") == {"read": 6, "kept": 6, "dropped": {}}
    assert ledger.samples.encode("asked") == {
        "asked": 12, "kept": 5, "dropped": {"empty": 2, "length": 2, "overlong": 1, "unanswered": 2},
    }  # fmt: skip


def test_a_prompt_without_an_answer_takes_the_later_turns(
    teacher: Path, tokenizer: Tokenizer, tmp_path: Path, echo: tuple
) -> None:
    endpoint, handler = echo
    prompts = {row["messages"][-1]["content"]: row["prompt_id"] for row in read_jsonl(batch(tmp_path, tokenizer))}
    handler.says["user\n\none"] = ("", "error")
    with pytest.raises(DistillError, match=rf"prompt {prompts['one']} got no answer"):
        generate(teacher, tmp_path, endpoint)
    said, rows, metadata = generate(teacher, tmp_path, endpoint, max_failed_rows=1)
    assert [prompt for prompt, _ in metadata.failed] == [prompts["one"]]
    lost = [(prompts[text], sample, "unanswered") for text in ("two", "three") for sample in (0, 1)]
    assert (metadata.unasked, len(rows)) == (lost, 6)
    assert "1 prompts without an answer, 4 turns with nothing to follow" in said


def test_a_file_in_another_order_is_refused() -> None:
    rows = [{"prompt_id": "a"}, {"prompt_id": "b", "follows": "a"}, {"prompt_id": "c", "follows": "b"}]
    assert rounds([*rows, {"prompt_id": "d"}]) == [[0, 3], [1], [2]]
    with pytest.raises(DistillError, match="prompt b follows a, which does not stand before it"):
        rounds(rows[1:])
