"""A split of the dataset on disk: Parquet in shards, and JSON lines beside it where they are asked for."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class Shards:
    """Writes tables into `folder`/data as {split}-00000-of-0000N.parquet, `rows` in each but the last."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, rows: int, jsonl: bool = False):
        self.folder = folder / "data"
        self.split = split
        self.schema = schema
        self.rows = rows
        self.count = 0
        self.bytes = 0  # in memory, as Arrow has them
        self.paths: list[Path] = []
        self.writer: pq.ParquetWriter | None = None
        self.room = 0
        self.lines = None
        if jsonl:
            (folder / "jsonl").mkdir(exist_ok=True)
            self.lines = (folder / f"jsonl/{split}.jsonl").open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        """Add rows; their order is kept across shards."""
        self.count += len(table)
        self.bytes += table.nbytes
        if self.lines is not None:
            self.lines.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist())
        while len(table):
            if self.room == 0:
                self._open()
            part = table.slice(0, self.room)
            self.writer.write_table(part)
            self.room -= len(part)
            table = table.slice(len(part))

    def _open(self) -> None:
        self._close()
        self.paths.append(self.folder / f"{self.split}.{len(self.paths)}.parquet")
        self.writer = pq.ParquetWriter(self.paths[-1], self.schema, compression="zstd")
        self.room = self.rows

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def __enter__(self) -> "Shards":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Close, and name the shards now that their number is known."""
        self._close()
        if self.lines is not None:
            self.lines.close()
        for i, path in enumerate(self.paths):
            path.rename(self.folder / f"{self.split}-{i:05d}-of-{len(self.paths):05d}.parquet")
