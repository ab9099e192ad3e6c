"""Conversations to train on: what the teacher answered, or what the prompts' own dataset did."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from distill.errors import DistillError
from distill.files import read_jsonl
from distill.text.chat import Messages


def training_conversations(files: Iterable[Path], kind: Literal["generated", "original"]) -> Iterator[Messages]:
    """Whole conversations, in the order of the files and of their rows.

    generated: `messages` of a dataset's Parquet files. original: prompts (JSONL) with the answer that their
    dataset had; a prompt without one is passed over.
    """
    for file in files:
        if kind == "original":
            for row in read_jsonl(file):
                if row["original"] is not None:
                    yield [*row["messages"], {"role": "assistant", "content": row["original"]}]
            continue
        try:
            for batch in pq.ParquetFile(file).iter_batches(columns=["messages"]):
                yield from batch.column("messages").to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors are one of the two
            raise DistillError(f"{file} cannot be read as a dataset of conversations ({error})") from None
