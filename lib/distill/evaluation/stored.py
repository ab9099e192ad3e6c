"""Are stored logits the teacher's? A random sample of their rows is computed again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill import SCHEMA_VERSION
from distill.checkpoints.info import read_info
from distill.data.rows import permutation
from distill.data.schema import check_metadata, column_bytes, opened_completions
from distill.data.topk import KINDS, LOGSUMEXP, Told, columns_of, unpack_ids
from distill.errors import DistillError
from distill.files import write_json
from distill.generation.scoring import Given, Scorer

HALF = 2.0**-11
"""float16 is off by no more than this share of a number."""
SLACK = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""Nats by which another order of sums may move a log-probability of a model of this type: what was told while it was
written came from a cache, a token at a time. Logits of other tokens are off by several nats."""
INT8 = 0.5
"""Nats more where keys and values were kept in eight bits when they were told."""


def check_logits(params: Path, files: Sequence[Path], out: Path, *, rows: int = 64, seed: int = 0) -> str:
    """Compute `rows` completions of all files again, and write `out`; a `DistillError` names the row that is off most.

    Checked: log-probabilities of the stored ids, the logsumexp, and that the likeliest ids are the likeliest.
    """
    chosen = _sample(files, rows, seed)
    scorers: dict[bool, Scorer] = {}
    info, tokens, worst = read_info(params), 0, (0.0, "")
    for path, numbers in chosen.items():
        with opened_completions(path) as (file, metadata):
            check_metadata(path, metadata, teacher=info.digest, tokenizer_hash=info.tokenizer_hash)
            if metadata.logits is None:
                raise DistillError(f"{path} has no logits: set generation.top_logits, and delete the file")
            table = _rows(file, numbers, metadata.logits)
        int8 = metadata.sampling.get("int8", [])
        if (eight := "weights" in int8) not in scorers:
            scorers[eight] = Scorer(params, max_length=metadata.sampling.get("max_target_length"), int8=eight)
        slack = SLACK[info.dtype] + (INT8 if int8 else 0.0)
        for name, count, off in _differences(scorers[eight], table, metadata.logits, slack):
            tokens += count
            worst = max(worst, (off, f"{path}, prompt {name[0]} sample {name[1]}"))
    if worst[0] > 1:
        raise DistillError(
            f"stored logits are not the teacher's: {worst[1]} is off by {worst[0]:.1f} times what float16 and the "
            "order of sums explain: delete the file, and the next run makes it again"
        )
    share = round(float(worst[0]), 4)
    report = {
        "schema": SCHEMA_VERSION,
        "teacher": info.digest,
        "rows": sum(map(len, chosen.values())),
        "tokens": tokens,
    }
    write_json(out, report | {"worst_share_of_tolerance": share, "float16": HALF, "slack": SLACK[info.dtype]})
    return f"{report['rows']} completions of {tokens:,} tokens computed again: within {share:.0%} of the tolerance"


def _sample(files: Sequence[Path], rows: int, seed: int) -> dict[Path, np.ndarray]:
    """Numbers of rows in each file, drawn from all of them together."""
    counts = []
    for path in files:
        with opened_completions(path) as (file, _):
            counts.append(file.metadata.num_rows)
    ends = np.cumsum([0, *counts])
    drawn = np.sort(permutation(int(ends[-1]), seed, 0)[:rows])
    parts = {path: drawn[(drawn >= a) & (drawn < b)] - a for path, a, b in zip(files, ends, ends[1:], strict=False)}
    return {path: numbers for path, numbers in parts.items() if len(numbers)}


def _rows(file, numbers: np.ndarray, told: Told) -> pa.Table:
    names = ["prompt_id", "sample", "messages", "prompt_token_ids", "completion_token_ids", *told.columns]
    parts, before = [], 0
    for batch in file.iter_batches(256, columns=names):
        here = numbers[(numbers >= before) & (numbers < before + len(batch))] - before
        before += len(batch)
        parts.append(pa.Table.from_batches([batch]).take(here))
    return pa.concat_tables(parts)


def _differences(scorer: Scorer, table: pa.Table, told: Told, slack: float):
    """(prompt id and sample, tokens, largest difference in units of what is allowed) of each row and kind."""
    given = [
        Given(row["prompt_id"], row["sample"], row["messages"], row["prompt_token_ids"], row["completion_token_ids"])
        for row in table.drop_columns(list(told.columns)).to_pylist()
    ]
    counts, values = column_bytes(table[LOGSUMEXP])
    ends = np.cumsum(counts)[:-1]
    sums = np.split(np.ascontiguousarray(values).view("<f4")[:, 0], ends)
    for kind in KINDS:
        if not (k := getattr(told, kind)):
            continue
        ids, logprobs = (column_bytes(table[name])[1] for name in columns_of(kind))
        ids = np.split(unpack_ids(ids, k, told.vocabulary), ends)
        logprobs = np.split(np.ascontiguousarray(logprobs).view("<f2").astype(np.float32), ends)
        for i, found in scorer.at(given, ids, told.vocabulary):
            if len(ids[i]) != len(given[i].completion):
                raise DistillError(
                    f"prompt {given[i].prompt_id} has {len(ids[i])} logits for its tokens: delete the file"
                )
            allowed = HALF * np.abs(logprobs[i]) + slack
            off = [np.abs(logprobs[i] - found["logprobs"]) / allowed, np.abs(sums[i] - found[LOGSUMEXP]) / slack]
            if kind == "top":
                off.append(np.abs(logprobs[i] - found["best"]) / allowed)
            most = np.max([part.max(initial=0) for part in off])  # NaN wins, and counts as infinite
            yield (given[i].prompt_id, given[i].sample), len(ids[i]), float(np.nan_to_num(most, nan=np.inf))
