"""Logits of text that is there already are those that are told while it is written; and they can be checked."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored_logits import SEED, TOLD, Written, stacked, written

from distill.checkpoints.store import load_weights
from distill.config.training import Part
from distill.data.schema import read_completions
from distill.data.topk import as_text, packed
from distill.errors import DistillError
from distill.evaluation.stored import check_logits
from distill.files import read_json, write_jsonl
from distill.generation.scoring import Given, Scorer, score_logits
from distill.models import decoder

WIDTHS = {"top": TOLD.top, "sampled": TOLD.sampled}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def captured(teacher: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher.write(tmp_path_factory.mktemp("captured") / "0000.parquet")


def test_scored_is_told(teacher: Written) -> None:
    """Ids, log-probabilities and draws, though one reads whole rows and the other a token at a time."""
    rows = [Given(r["prompt_id"], r["sample"], r["messages"], r["prompt_token_ids"], r["completion_token_ids"])
            for r in teacher.rows]  # fmt: skip
    found = dict(Scorer(teacher.params, max_length=64).told(rows, TOLD, SEED))
    assert sorted(found) == list(range(len(rows)))
    for i, result in enumerate(teacher.results):
        np.testing.assert_allclose(found[i]["logprobs"], result.logprobs, atol=1e-4)
        np.testing.assert_allclose(found[i]["logsumexp"], result.told["logsumexp"], atol=1e-4)
        np.testing.assert_allclose(found[i]["top_logprobs"], stacked(result, "top_logprobs"), atol=1e-4)
        assert np.mean(found[i]["top_ids"] == stacked(result, "top_ids")) > 0.95  # but for what all but ties
        assert np.mean(found[i]["sampled_ids"] == stacked(result, "sampled_ids")) > 0.99


def test_a_position_is_scored_as_the_decoder_does(teacher: Written) -> None:
    row, result = teacher.rows[3], teacher.results[3]
    config, weights = load_weights(teacher.params)
    ids = jnp.asarray([row["prompt_token_ids"] + row["completion_token_ids"]], jnp.int32)
    logits = decoder.logits(config, weights, decoder.forward(config, weights, ids))[0, :, : TOLD.vocabulary]
    wanted = jax.nn.log_softmax(logits)[len(row["prompt_token_ids"]) - 1 : -1]
    best = np.sort(np.asarray(wanted), axis=-1)[:, ::-1][:, : TOLD.top]
    np.testing.assert_allclose(stacked(result, "top_logprobs"), best, atol=1e-4)


def test_all_kinds_of_text_can_be_scored(teacher: Written, captured: Path, tmp_path: Path) -> None:
    how = (teacher.params, tmp_path / "out.parquet", WIDTHS, SEED, "tokenizer", 64)
    assert score_logits(*how, completions=captured).startswith("out: 18 completions of")
    table, metadata = read_completions(tmp_path / "out.parquet", teacher=teacher.info.digest)
    assert metadata.logits == TOLD
    assert table["completion_token_ids"].to_pylist() == [row["completion_token_ids"] for row in teacher.rows]
    asked = [{"role": "user", "content": "hello"}]
    prompts = tmp_path / "0000.jsonl"
    write_jsonl(prompts, [{"messages": asked, "original": answer} for answer in ("a b", None, "c")])
    score_logits(*how, prompts=prompts)
    originals = read_completions(tmp_path / "out.parquet")[0].to_pylist()
    assert [(r["completion"][0]["content"], r["sample"]) for r in originals] == [("a b", 0), ("c", 1)]
    assert originals[0]["completion_token_ids"][-1] in teacher.info.eos_ids
    write_jsonl(tmp_path / "set.jsonl", [{"prompt": "hi", "completion": "yes."}])
    score_logits(*how, part=Part(source=str(tmp_path / "set.jsonl")))
    (row,) = read_completions(tmp_path / "out.parquet")[0].to_pylist()
    assert len(row["top_ids"]) == len(row["completion_token_ids"]) == 5
    with pytest.raises(DistillError, match="36 logits a token are asked for, the teacher has 35: lower the stages' k"):
        score_logits(teacher.params, tmp_path / "x", {"top": 36, "sampled": 0}, 0, "tokenizer", 64, prompts=prompts)


def test_a_teacher_that_gives_nan_is_named_with_the_prompt(teacher: Written) -> None:
    rows = [Given(r["prompt_id"], r["sample"], r["messages"], r["prompt_token_ids"], r["completion_token_ids"])
            for r in teacher.rows]  # fmt: skip
    scorer = Scorer(teacher.params, max_length=64)
    scorer.weights = scorer.weights | {"norm": jax.tree.map(lambda leaf: leaf * jnp.nan, scorer.weights["norm"])}
    with pytest.raises(DistillError, match=r"^the teacher gives NaN for prompt \w+: its weights are damaged, or .*$"):
        next(scorer.told(rows, TOLD, SEED))


def test_stored_logits_that_are_the_teachers_pass(teacher: Written, captured: Path, tmp_path: Path) -> None:
    said = check_logits(teacher.params, [captured], tmp_path / "check.json", rows=7)
    report = read_json(tmp_path / "check.json")
    assert (report["rows"], report["teacher"]) == (7, teacher.info.digest)
    assert 0 < report["worst_share_of_tolerance"] <= 1
    assert said.startswith("7 completions of")


def shifted(told: dict) -> dict:
    """The logits of each token are those of the one before it."""
    return {name: np.roll(values, 1, axis=0) for name, values in told.items()}


def without_the_best(told: dict) -> dict:
    """The k likeliest ids but for the first, and the last one twice."""
    return told | {name: np.roll(told[name], -1, axis=1)[:, [0, 1, 2, 3, 4, 4]] for name in ("top_ids", "top_logprobs")}


def a_little_off(told: dict) -> dict:
    return told | {"sampled_logprobs": told["sampled_logprobs"] + 0.02}


def not_a_number(told: dict) -> dict:
    return told | {"logsumexp": told["logsumexp"] * np.nan}


@pytest.mark.parametrize("spoil", [shifted, without_the_best, a_little_off, not_a_number])
def test_stored_logits_that_are_not_the_teachers_fail(teacher: Written, tmp_path: Path, spoil) -> None:
    rows = [dict(row) for row in teacher.rows]
    told = {name: np.stack(values) for name, values in teacher.results[11].told.items()}
    rows[11]["logits"] = as_text(packed(spoil(told), TOLD.vocabulary))
    path = teacher.write(tmp_path / "0000.parquet", rows)
    name = f"prompt {rows[11]['prompt_id']} sample 1 is off by"
    with pytest.raises(DistillError, match=f"stored logits are not the teacher's: .*{name}"):
        check_logits(teacher.params, [path], tmp_path / "check.json")
    assert not (tmp_path / "check.json").exists()


def test_logits_of_another_teacher_are_refused_before_they_are_read(teacher: Written, tmp_path: Path) -> None:
    path = teacher.write(tmp_path / "0000.parquet", teacher="ab" * 32)
    with pytest.raises(DistillError, match=r"teacher is abababababababab…, .* is expected: delete the file"):
        check_logits(teacher.params, [path], tmp_path / "check.json")
