"""Scores are what the model does: greedy answers judged, references weighed."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.store import load_weights
from distill.config.results import Evaluation
from distill.errors import DistillError
from distill.evaluation.score import evaluate
from distill.files import read_json, write_jsonl
from distill.models import decoder
from distill.text.chat import example_tokens
from distill.text.tokenizer import load_tokenizer

WORDS = ["abc", "hello", "a", "some words here", "z"]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    import_checkpoint(tiny_llama(folder / "hf"), folder / "params", dtype="float32", origin="tiny")
    return folder / "params"


def score(params: Path, rows: list[dict], folder: Path, teacher: Path | None = None, **changes) -> dict:
    write_jsonl(folder / "rows.jsonl", rows)
    settings = Evaluation(source=str(folder / "rows.jsonl"), batch_size=2, **changes)
    evaluate(params, settings, 40, folder / "out.json", name="tiny", template="tokenizer", teacher=teacher)
    return read_json(folder / "out.json")


def asked(words: list[str], references: list[str] | None = None) -> list[dict]:
    rows = [{"messages": [{"role": "user", "content": word}]} for word in words]
    return [row | {"right": r} for row, r in zip(rows, references or [], strict=True)] if references else rows


def test_nll_is_the_mean_over_all_reference_tokens(params: Path, tmp_path: Path) -> None:
    scores = score(params, asked(WORDS, WORDS), tmp_path, reference="right")
    tokenizer = load_tokenizer(params / "tokenizer")
    config, weights = load_weights(params)
    whole = jax.jit(lambda ids: decoder.logits(config, weights, decoder.forward(config, weights, ids)))
    total, count = 0.0, 0
    for word, answer in zip(WORDS, scores["answers"], strict=True):
        turns = [{"role": "user", "content": word}, {"role": "assistant", "content": word}]
        ids, mask = example_tokens(tokenizer, turns, "tokenizer")
        logits = whole(np.asarray([ids[:-1] + [0] * (40 - len(ids))]))
        known = jax.nn.log_softmax(logits[0, :, : tokenizer.real_vocab])
        own = [-float(known[i, ids[i + 1]]) for i in range(len(ids) - 1) if mask[i + 1]]
        assert answer["nll"] == pytest.approx(np.mean(own), abs=1e-4)
        total, count = total + sum(own), count + len(own)
    assert scores["tokens"] == count == sum(len(word) + 1 for word in WORDS)  # the EOS counts
    assert scores["nll"] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.slow
def test_kl_is_the_mean_over_the_same_tokens(params: Path, tmp_path: Path) -> None:
    """From a teacher of another width, whose padding has no mass; from one of another tokenizer there is none."""
    import_checkpoint(
        tiny_llama(tmp_path / "hf", seed=1, vocab_size=48), tmp_path / "teacher", dtype="float32", origin="t"
    )
    scores = score(params, asked(WORDS, WORDS), tmp_path, reference="right", teacher=tmp_path / "teacher")
    sides = [load_weights(folder) for folder in (tmp_path / "teacher", params)]
    tokenizer, total, same = load_tokenizer(params / "tokenizer"), 0.0, 0
    for word in WORDS:
        turns = [{"role": "user", "content": word}, {"role": "assistant", "content": word}]
        ids, mask = example_tokens(tokenizer, turns, "tokenizer")
        learned = np.asarray(mask[1:]) > 0
        logits = [
            np.asarray(decoder.logits(*side, decoder.forward(*side, np.asarray([ids[:-1]]))), np.float64)[
                0, learned, :35
            ]
            for side in sides
        ]
        p, q = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in logits)
        total += (p * np.log(p / q)).sum()
        same += (p.argmax(-1) == q.argmax(-1)).sum()
    assert scores["kl"] == pytest.approx(total / scores["tokens"], rel=1e-4)
    assert scores["agreement"] == pytest.approx(same / scores["tokens"])
    other = json.loads((tmp_path / "teacher/tokenizer/tokenizer.json").read_text())
    other["model"]["vocab"]["!"] = 35
    (tmp_path / "teacher/tokenizer/tokenizer.json").write_text(json.dumps(other))
    scores = score(params, asked(WORDS, WORDS), tmp_path, reference="right", teacher=tmp_path / "teacher")
    assert (scores["kl"], scores["agreement"]) == (None, None)
    assert scores["nll"] is not None


def test_exact_match_is_the_share_of_right_answers(params: Path, tmp_path: Path) -> None:
    given = [row["answer"] for row in score(params, asked(WORDS), tmp_path)["answers"]]
    scores = score(params, asked(WORDS, [f" {given[0]} ", *("wrong" for _ in WORDS[1:])]), tmp_path, reference="right")
    ended = scores["answers"][0]["finish_reason"] == "stop"
    assert scores["correct"] == int(ended)  # an answer that ran into the limit is not a right one
    assert scores["exact_match"] == int(ended) / len(WORDS)
    assert [row["answer"] for row in scores["answers"]] == given


def test_without_references_there_are_answers_and_no_scores(params: Path, tmp_path: Path) -> None:
    scores = score(params, asked(WORDS), tmp_path)
    assert (scores["exact_match"], scores["nll"], scores["count"]) == (None, None, len(WORDS))
    assert all(row["correct"] is None for row in scores["answers"])


def test_a_prompt_without_room_for_an_answer_is_named(params: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"tiny: held-out prompt .* has 42 tokens, .* may have 40: raise"):
        score(params, asked(["a" * 40]), tmp_path)


def test_a_reference_over_a_context_is_named_at_once(params: Path, tmp_path: Path, monkeypatch) -> None:
    """The model's own, and that of a teacher who would be asked for its distribution."""
    monkeypatch.setattr("distill.evaluation.score.Engine", None)
    teacher = {"seed": 1, "max_position_embeddings": 24}
    import_checkpoint(tiny_llama(tmp_path / "hf", **teacher), tmp_path / "teacher", dtype="float32", origin="t")
    rows = asked(["a", "b"], ["a", "b" * 30])
    said = r"tiny: held-out prompt \w+ has 34 tokens with its reference, the context of {} is 24: take the prompt out$"
    with pytest.raises(DistillError, match=said.format("the teacher")):
        score(params, rows, tmp_path, reference="right", teacher=tmp_path / "teacher")
    with pytest.raises(DistillError, match=said.format("tiny")):
        score(tmp_path / "teacher", rows, tmp_path, reference="right")


def test_limit_takes_the_first_rows(params: Path, tmp_path: Path) -> None:
    scores = score(params, asked(WORDS, WORDS), tmp_path, reference="right", limit=2)
    assert [row["messages"][0]["content"] for row in scores["answers"]] == WORDS[:2]
