"""Stored logits as training examples: aligned with their tokens, whatever is left out, cut, packed or held out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.data.schema import CompletionsMetadata, write_completions
from distill.data.stored import Wanted, stored_examples, text_digest
from distill.data.topk import Told, as_text, packed
from distill.errors import DistillError
from distill.training.held_out import split

VOCABULARY = 100_000  # so that ids have a bit above the sixteenth
TOLD = Told(5, 7, VOCABULARY)
METADATA = CompletionsMetadata("ab" * 32, "cd" * 32, {}, 0, logits=TOLD)


def says(token: int) -> dict[str, np.ndarray]:
    """What is stored with a token: it is the first of its ids, with log-probability −token/1000."""
    return {
        "logsumexp": np.float32(token),
        "top_ids": np.arange(token, token + 5),
        "top_logprobs": -np.float32(token) / 1000 - np.arange(5),
        "sampled_ids": np.full(7, token + 1),
        "sampled_logprobs": -np.full(7, token / 500),
    }


def row(prompt: str, sample: int, completion: list[int]) -> dict:
    told = {name: [says(token)[name] for token in completion] for name in says(0)}
    ask, answer = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": f"{prompt} {sample}"}]
    return {
        "prompt_id": prompt, "sample": sample, "prompt": ask, "completion": answer, "messages": ask + answer,
        "prompt_token_ids": [1, 2, 3], "completion_token_ids": completion,
        "logprobs": [-token / 1000 for token in completion], "finish_reason": "stop", "reference": None,
        "logits": as_text(packed(told, VOCABULARY)),
    }  # fmt: skip


ROWS = [row(f"p{i // 2}", i % 2, [10 * i + j + 66_000 * (i == 3) for j in range(4, 5 + i % 5)]) for i in range(12)]


def file(folder: Path, rows: Sequence[dict] = ROWS, **changes: object) -> Path:
    write_completions(folder / "0000.parquet", rows, CompletionsMetadata(**vars(METADATA) | changes))
    return folder / "0000.parquet"


def take(folder: Path, source: Wanted | None = None, kind: str = "top", k: int = 5, **how: object) -> Examples:
    source = source or Wanted([file(folder)])
    return stored_examples([source], kind, k, folder / "logits", how.pop("max_length", 64), **how)


def assert_aligned(batch: dict[str, np.ndarray]) -> int:
    """Each learned target has its own logits, all others none; gives how many there are."""
    learned = batch["mask"] > 0
    targets = batch["targets"][learned]
    np.testing.assert_array_equal(batch["soft_ids"][learned][:, 0], targets)
    wanted = -targets[:, None] / 1000 - np.arange(batch["soft_ids"].shape[2])
    np.testing.assert_allclose(batch["soft_logprobs"][learned], wanted, rtol=2**-11)
    assert not batch["soft_ids"][~learned].any()
    assert not batch["soft_logprobs"][~learned].any()
    return int(learned.sum())


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("k", [3, 5])
def test_every_token_keeps_its_logits(tmp_path: Path, packing: bool, k: int) -> None:
    examples = take(tmp_path, k=k)
    loader = Loader(examples, 2, 0, 24 if packing else None, packing=packing, endless=False)
    batches = [loader.batch(step) for step in range(-(-loader.rows.per_epoch // 2))]
    assert sum(map(assert_aligned, batches)) == sum(len(r["completion_token_ids"]) for r in ROWS)
    assert batches[0]["soft_ids"].shape[2] == k
    assert batches[0]["soft_vocabulary"].tolist() == [VOCABULARY] * 2


def test_draws_are_another_kind(tmp_path: Path) -> None:
    batch = Loader(take(tmp_path, kind="sampled", k=7), 12, 0).batch(0)
    learned = batch["mask"] > 0
    np.testing.assert_array_equal(batch["soft_ids"][learned][:, 6], batch["targets"][learned] + 1)


def test_what_is_cut_dropped_or_held_out_takes_its_logits_along(tmp_path: Path) -> None:
    cut = take(tmp_path, max_length=6, cut=True)
    assert cut.cut > 0
    assert assert_aligned(Loader(cut, 12, 0).batch(0)) == int(cut.learned.sum())
    dropped = take(tmp_path, max_length=6)
    assert dropped.dropped["overlong"] == cut.cut
    assert_aligned(Loader(dropped, len(dropped), 0).batch(0))
    rest, apart = split(take(tmp_path), 5, "s")
    assert_aligned(Loader(rest, 7, 0).batch(0)), assert_aligned(Loader(apart, 5, 0).batch(0))
    assert rest.digest() != apart.digest()


def test_the_dataset_says_which_rows(tmp_path: Path) -> None:
    kept = {(r["prompt_id"], r["sample"]): text_digest(r["completion"][0]["content"]) for r in ROWS[1::3]}
    examples = take(tmp_path, Wanted([file(tmp_path)], kept))
    assert [examples[i][0].tolist() for i in range(len(examples))] == [
        r["prompt_token_ids"] + r["completion_token_ids"] for r in ROWS[1::3]
    ]
    assert_aligned(Loader(examples, 4, 0).batch(0))


def test_transforms_move_answers_with_their_logits(tmp_path: Path) -> None:
    one = take(tmp_path, Wanted([file(tmp_path)], samples=1))
    assert [ids[3:].tolist() for ids, _ in map(one.__getitem__, range(6))] == [
        r["completion_token_ids"] for r in ROWS[::2]
    ]
    wrong = take(tmp_path, Wanted([file(tmp_path)], corrupt=1.0))
    assert_aligned(Loader(wrong, 12, 0).batch(0))
    answers = [wrong[i][0][3:].tolist() for i in range(12)]
    assert sorted(answers) == sorted(r["completion_token_ids"] for r in ROWS)
    assert not any(answer == r["completion_token_ids"] for answer, r in zip(answers, ROWS, strict=True))


def other_text(rows: list[dict]) -> None:
    rows[4] = rows[4] | {"completion": [{"role": "assistant", "content": "without its thought"}]}


def shifted_logits(rows: list[dict]) -> None:
    rows[4] = rows[4] | {"logits": as_text(packed({n: [says(9)[n]] * len(rows[4]["completion_token_ids"])
                                                   for n in says(0)}, VOCABULARY)),
                         "completion_token_ids": list(range(9, 9 + len(rows[4]["completion_token_ids"])))}  # fmt: skip


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    kept = {(r["prompt_id"], r["sample"]): text_digest(r["completion"][0]["content"]) for r in ROWS}
    rows = list(ROWS)
    other_text(rows)
    with pytest.raises(DistillError, match="prompt p2 sample 0 has another text in the dataset"):
        take(tmp_path, Wanted([file(tmp_path, rows)], kept))
    rows = list(ROWS)
    shifted_logits(rows)
    with pytest.raises(DistillError, match="the logits of prompt p2 sample 0 are not those of its tokens"):
        take(tmp_path, Wanted([file(tmp_path, rows)]))
    with pytest.raises(DistillError, match="1 rows of the dataset have no logits, prompt p9 sample 0"):
        take(tmp_path, Wanted([file(tmp_path)], kept | {("p9", 0): b"x"}))
    with pytest.raises(DistillError, match="has 5 top logits a token, the stage takes 6: lower its k"):
        take(tmp_path, k=6)
    with pytest.raises(DistillError, match=r"teacher is abababababababab…, x is expected"):
        take(tmp_path, teacher="x")
    with pytest.raises(DistillError, match=r"tokenizer_hash is cdcdcdcdcdcdcdcd…, x is expected"):
        take(tmp_path, tokenizer_hash="x")
    assert not (tmp_path / "logits").exists()
    with pytest.raises(ValueError, match="logsumexp is not 4 bytes a token"):
        file(tmp_path, [ROWS[0] | {"logits": ROWS[4]["logits"]}])


def test_a_row_with_fewer_tokens_than_logits_is_named(tmp_path: Path) -> None:
    """As where a tool has cut the tokens and knew nothing of the logits."""
    table = pq.read_table(file(tmp_path))
    place, tokens = table.schema.get_field_index("completion_token_ids"), table["completion_token_ids"].to_pylist()
    field, tokens[4] = table.schema.field(place), tokens[4][:-1]
    pq.write_table(table.set_column(place, field, pa.array(tokens, field.type)), tmp_path / "0000.parquet")
    said = r"the logits of prompt p2 sample 0 are not those of its tokens \(5 logits for 4 tokens\): delete the file"
    with pytest.raises(DistillError, match=said):
        take(tmp_path, Wanted([tmp_path / "0000.parquet"]))
