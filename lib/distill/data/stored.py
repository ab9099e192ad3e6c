"""Completions with stored logits as training examples: the teacher's own tokens, and beside them a mapped file.

Parquet cannot be read a row at a time, and training wants rows in any order: what a stage takes is written once,
batch by batch, as plain arrays that are mapped into memory, and thrown away at the stage's end.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from distill.data.masking import Examples
from distill.data.schema import CompletionsMetadata, check_metadata, column_bytes, opened_completions
from distill.data.topk import Told, columns_of, pack_ids, unpack_ids
from distill.data.transforms import donors, first_samples
from distill.errors import DistillError
from distill.files import replacing

ROWS = 256  # completions that are unpacked at a time
Key = tuple[str, int]  # prompt id and sample


@dataclass(frozen=True)
class Logits:
    """A row for each learned token of some examples: ids and their log-probabilities; see `Examples.logits`."""

    ids: np.ndarray  # [N, W] bytes, data.topk.pack_ids
    logprobs: np.ndarray  # [N, k] float16
    told: Told
    digest: str
    starts: np.ndarray  # the row of each example's first learned token

    @property
    def k(self) -> int:
        return self.logprobs.shape[1]

    def of(self, example: int, count: int) -> tuple[Int[np.ndarray, "T k"], Float[np.ndarray, "T k"]]:
        """Ids and log-probabilities of the first `count` learned tokens of an example."""
        rows = slice(self.starts[example], self.starts[example] + count)
        return unpack_ids(self.ids[rows], self.k, self.told.vocabulary), self.logprobs[rows]

    def taken(self, chosen: np.ndarray) -> "Logits":
        """Those of some examples (bool, one an example)."""
        return Logits(self.ids, self.logprobs, self.told, self.digest, self.starts[chosen])


@dataclass(frozen=True)
class Wanted:
    """What a stage takes from files of completions with logits.

    files: of a source, in order. kept: the completions in the dataset, with a digest of their text (`kept_in`); None:
    all are taken. samples, corrupt: see `config.Part`.
    """

    files: Sequence[Path]
    kept: Mapping[Key, bytes] | None = None
    weight: float | None = None
    samples: int | None = None
    corrupt: float = 0.0


def stored_examples(
    sources: Sequence[Wanted], kind: str, k: int, folder: Path, max_length: int, *, cut: bool = False,
    teacher: str | None = None, tokenizer_hash: str | None = None,
) -> Examples:  # fmt: skip
    """Examples of `prompt_token_ids` and `completion_token_ids` with their first k logits of a kind, in `folder`.

    Their tokens are the teacher's: text that is tokenized again need not give them. Files of another teacher or
    tokenizer, rows whose logits are not those of their tokens, and a dataset with rows that have no logits are
    refused.
    """
    read, parts = [], []
    with replacing(folder) as tmp:
        tmp.mkdir(parents=True)
        with _Writer(tmp, kind, k) as writer:
            for source in sources:
                before = len(read)
                read += _completions(source, writer, teacher, tokenizer_hash)
                parts.append((before, len(read), source))
        if not read:
            raise DistillError("no completion with logits is left to train on: look at the dataset's filters")
    ids, masks, starts, sizes, dropped, cuts = [], [], [], [], Counter(), 0
    for first, last, source in parts:
        count = len(ids)
        for prompt, completion, start in _transformed(read[first:last], source):
            whole, learned = np.concatenate([prompt, completion]), len(completion)
            mask = np.arange(len(whole)) >= len(prompt)
            if len(whole) > max_length:
                if not cut or len(prompt) >= max_length:
                    dropped["overlong"] += 1
                    continue
                whole, mask, cuts = whole[:max_length], mask[:max_length], cuts + 1
            if not learned:
                dropped["nothing_to_learn"] += 1
                continue
            ids.append(whole)
            masks.append(mask.astype(np.uint8))
            starts.append(start)
        sizes.append((len(ids) - count, source.weight))
    if not ids:
        raise DistillError(f"all completions with logits are over max_length, {max_length}: raise it")
    logits = writer.mapped(folder, np.asarray(starts, np.int64))
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    weighted = tuple(sizes) if len(sizes) > 1 and all(weight for _, weight in sizes) else ()
    return Examples(
        np.concatenate(ids).astype(np.int32), np.concatenate(masks), offsets, dict(dropped), weighted, cuts, logits
    )


Row = tuple[str, np.ndarray, np.ndarray, int]  # prompt id, prompt, completion, first row of its logits


def _transformed(rows: Sequence[Row], source: Wanted) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Prompt, completion and where its logits start, of those that the source's transforms leave."""
    if source.samples is not None:
        rows = [
            row for row, taken in zip(rows, first_samples([r[0] for r in rows], source.samples), strict=True) if taken
        ]
    giver = donors([row[0] for row in rows], source.corrupt)
    for i, (_, prompt, _, _) in enumerate(rows):
        _, _, completion, start = rows[giver.get(i, i)]
        yield prompt, completion, start


def _completions(source: Wanted, writer: "_Writer", teacher: str | None, tokenizer_hash: str | None) -> list[Row]:
    """The completions that the source takes, their logits written."""
    left, rows = None if source.kept is None else dict(source.kept), []
    for path in source.files:
        with opened_completions(path) as (file, metadata):
            check_metadata(path, metadata, teacher=teacher, tokenizer_hash=tokenizer_hash)
            writer.expect(path, metadata)
            columns = ["prompt_id", "sample", "completion", "prompt_token_ids", "completion_token_ids", "logprobs"]
            for batch in file.iter_batches(ROWS, columns=[*columns, *columns_of(writer.kind)]):
                rows += _batch(path, pa.Table.from_batches([batch]), left, writer)
    if left:
        prompt, sample = next(iter(left))
        raise DistillError(
            f"{len(left)} rows of the dataset have no logits, prompt {prompt} sample {sample} is the first: "
            "delete the dataset and the logits, and the next run makes them again"
        )
    return rows


def _batch(path: Path, table: pa.Table, left: dict[Key, bytes] | None, writer: "_Writer") -> list[Row]:
    names = list(zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True))
    if left is not None:
        chosen = []
        for key, (message,) in zip(names, table["completion"].to_pylist(), strict=True):
            wanted = left.pop(key, None)
            chosen.append(wanted is not None)
            if wanted not in (None, text_digest(message["content"])):
                raise DistillError(
                    f"{path}: prompt {key[0]} sample {key[1]} has another text in the dataset than its logits were "
                    "told for: leave dataset.think out, or delete the dataset"
                )
        table = table.filter(pa.array(chosen, pa.bool_()))
        names = [key for key, taken in zip(names, chosen, strict=True) if taken]
    prompts, completions = (_lists(table[f"{part}_token_ids"]) for part in ("prompt", "completion"))
    starts = writer.add(path, table, names, completions)
    return [
        (key[0], prompt, completion, start)
        for key, prompt, completion, start in zip(names, prompts, completions, starts, strict=True)
    ]


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    array = column.combine_chunks()
    lengths = np.diff(array.offsets.to_numpy())
    return np.split(array.flatten().to_numpy(), np.cumsum(lengths)[:-1]) if len(array) else []


class _Writer:
    """Unpacks, checks, cuts to k and writes; notes a digest of all that it wrote."""

    def __init__(self, folder: Path, kind: str, k: int):
        self.kind, self.k, self.rows, self.told = kind, k, 0, None
        self.names = columns_of(kind)
        self.files = [(folder / name).open("wb") for name in self.names]
        self.hash = hashlib.sha256()

    def expect(self, path: Path, metadata: CompletionsMetadata) -> None:
        """Refuse a file that has fewer logits, or of another vocabulary."""
        told = metadata.logits or Told(0, 0, 0)
        if (has := getattr(told, self.kind)) < self.k:
            raise DistillError(
                f"{path} has {has} {self.kind} logits a token, the stage takes {self.k}: lower its k, or raise "
                f"generation.{self.kind}_logits"
            )
        if self.told is not None and self.told.vocabulary != told.vocabulary:
            raise DistillError(f"{path} has logits of {told.vocabulary} ids, others of {self.told.vocabulary}")
        self.source, self.told = told, self.told or told

    def add(self, path: Path, table: pa.Table, names: Sequence[Key], completions: Sequence[np.ndarray]) -> np.ndarray:
        """Write the logits of some completions; gives the row that each starts at."""
        lengths, width = np.asarray([len(tokens) for tokens in completions], np.int64), getattr(self.source, self.kind)
        columns = []
        for name in self.names:
            counts, values = column_bytes(table[name])
            if (wrong := np.flatnonzero(counts != lengths)).size:
                _misaligned(path, names[wrong[0]], f"{counts[wrong[0]]} logits for {lengths[wrong[0]]} tokens")
            columns.append(values)
        ids = unpack_ids(columns[0], width, self.source.vocabulary)
        logprobs = np.ascontiguousarray(columns[1]).view("<f2")
        if table["logprobs"].null_count == 0:
            self._same_tokens(path, names, completions, lengths, ids, logprobs, table["logprobs"])
        cut = pack_ids(ids[:, : self.k], self.source.vocabulary), np.ascontiguousarray(logprobs[:, : self.k])
        for file, values in zip(self.files, cut, strict=True):
            self.hash.update(values.tobytes())
            file.write(values.tobytes())
        starts = self.rows + np.concatenate([[0], np.cumsum(lengths)])
        self.rows = int(starts[-1])
        return starts[:-1]

    def _same_tokens(
        self, path: Path, names: Sequence[Key], completions: Sequence[np.ndarray], lengths: np.ndarray,
        ids: np.ndarray, logprobs: np.ndarray, own: pa.ChunkedArray,
    ) -> None:  # fmt: skip
        """A token that is among its logits has the same log-probability there, but for float16."""
        tokens = np.concatenate([*completions, np.zeros(0, np.int32)])
        said = np.concatenate([*_lists(own), np.zeros(0, np.float32)]).astype(np.float32)
        off = np.abs(logprobs.astype(np.float32) - said[:, None]) > 2.0**-10 * np.abs(said)[:, None] + 2e-3
        if (wrong := np.flatnonzero(np.any((ids == tokens[:, None]) & off, axis=1))).size:
            row = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
            _misaligned(path, names[row], "a token's log-probability is another one there")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files:
            file.close()

    def mapped(self, folder: Path, starts: np.ndarray) -> Logits:
        """What was written, mapped; the files may be deleted then."""
        ids = np.memmap(folder / self.names[0], np.uint8, "r").reshape(self.rows, -1)
        logprobs = np.memmap(folder / self.names[1], "<f2", "r").reshape(self.rows, self.k)
        told = Told(**{"top": 0, "sampled": 0, "vocabulary": self.told.vocabulary} | {self.kind: self.k})
        return Logits(ids, logprobs, told, self.hash.hexdigest(), starts)


def _misaligned(path: Path, key: Key, why: str) -> None:
    raise DistillError(
        f"{path}: the logits of prompt {key[0]} sample {key[1]} are not those of its tokens ({why}): delete the file, "
        "and the next run makes it again"
    )


def text_digest(text: str) -> bytes:
    """What is remembered of a text: whole ones of a large dataset would fill the memory."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def kept_in(files: Sequence[Path]) -> dict[Key, bytes]:
    """`text_digest` of each completion in a dataset's Parquet files, by prompt id and sample."""
    kept: dict[Key, bytes] = {}
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["prompt_id", "sample", "completion"]):
            for row in batch.to_pylist():
                kept[row["prompt_id"], row["sample"]] = text_digest(row["completion"][0]["content"])
    return kept
