"""Completions to a dataset: filter batch by batch, write Parquet shards, card and ledger."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.config import Dataset
from distill.data.card import CardFacts, write_card
from distill.data.filters import Filter, Sample, filters, first_reason
from distill.data.ledger import Account, Ledger
from distill.data.schema import COMPLETIONS, read_completions
from distill.errors import DistillError
from distill.files import replacing, write_json

COLUMNS = ["prompt", "completion", "messages", "prompt_id", "sample"]
DATASET = pa.schema([COMPLETIONS.field(name) for name in COLUMNS])


def assemble(
    completions: Sequence[Path],
    index: dict[str, Any],
    settings: Dataset,
    num_generations: int,
    card: CardFacts,
    out: Path,
) -> Ledger:
    """Write the dataset folder `out` in one rename and return its ledger; one batch is in memory at a time.

    `completions` are the files of all batches that `index` (index.json) lists, named {batch}.parquet.
    """
    files = {path.stem: path for path in map(Path, completions)}
    if odd := sorted(files.keys() ^ index["batches"].keys()):
        raise DistillError(f"batches {', '.join(odd)} are in the prompt index or among the completions, not in both")
    chosen = filters(settings)
    accounts = {}
    first = None
    with replacing(out) as tmp:
        (tmp / "data").mkdir(parents=True)
        with Shards(tmp / "data", settings.shard_rows) as shards:
            for name, batch in index["batches"].items():
                path, prompts = files[name], _prompts(name, batch)
                table, metadata = read_completions(path, columns=[*COLUMNS, "finish_reason", "reference"])
                first = first or metadata
                if metadata != first:
                    raise DistillError(
                        f"completions {path} were made otherwise than the first batch ({metadata}, {first}): "
                        "delete the older ones, and the next run makes them again"
                    )
                asked, failed = prompts.kept * num_generations, len(metadata.failed) * num_generations
                if len(table) + failed != asked:
                    raise DistillError(
                        f"completions {path} have {len(table)} samples, not {prompts.kept} prompts × "
                        f"{num_generations}: delete the file, and the next run makes it again"
                    )
                keep, dropped = _judge(table, chosen)
                shards.write(table.filter(pa.array(keep, pa.bool_())).select(COLUMNS))
                accounts[name] = (prompts, Account(asked, sum(keep), dropped + Counter(failed=failed)))
        ledger = Ledger(num_generations, accounts)
        if ledger.samples.kept == 0:
            raise DistillError(
                f"no sample is left for the dataset ({ledger.summary()}): raise max_target_length, set "
                "dataset.keep_length, or look at what the teacher answers"
            )
        (tmp / "README.md").write_text(write_card(card, index["source"], first, ledger), encoding="utf-8")
        write_json(tmp / "ledger.json", ledger.encode())
    return ledger


def _prompts(name: str, batch: dict[str, Any]) -> Account:
    try:
        return Account(batch["read"], batch["kept"], batch["dropped"])
    except ValueError as error:
        raise DistillError(f"prompt index, batch {name}: {error}: delete index.json") from None


def _judge(table: pa.Table, chosen: list[Filter]) -> tuple[list[bool], Counter[str]]:
    """Which rows stay, and how many go for which reason."""
    keep = []
    dropped: Counter[str] = Counter()
    for sample in _samples(table):
        reason = first_reason(chosen, sample)
        keep.append(reason is None)
        if reason is not None:
            dropped[reason] += 1
    return keep, dropped


def _samples(table: pa.Table) -> Iterator[Sample]:
    columns = ("prompt_id", "completion", "finish_reason", "reference")
    for name, completion, finish_reason, reference in zip(
        *(table[column].to_pylist() for column in columns), strict=True
    ):
        yield Sample(name, completion[-1]["content"], finish_reason, reference)


class Shards:
    """Writes tables into `folder` as train-00000-of-0000N.parquet, `rows` in each but the last."""

    def __init__(self, folder: Path, rows: int):
        self.folder = folder
        self.rows = rows
        self.paths: list[Path] = []
        self.writer: pq.ParquetWriter | None = None
        self.room = 0

    def write(self, table: pa.Table) -> None:
        """Add rows; their order is kept across shards."""
        while len(table):
            if self.room == 0:
                self._open()
            part = table.slice(0, self.room)
            self.writer.write_table(part)
            self.room -= len(part)
            table = table.slice(len(part))

    def _open(self) -> None:
        self._close()
        self.paths.append(self.folder / f"{len(self.paths)}.parquet")
        self.writer = pq.ParquetWriter(self.paths[-1], DATASET, compression="zstd")
        self.room = self.rows

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *error: object) -> None:
        """Close, and name the shards now that their number is known."""
        self._close()
        for i, path in enumerate(self.paths):
            path.rename(self.folder / f"train-{i:05d}-of-{len(self.paths):05d}.parquet")
