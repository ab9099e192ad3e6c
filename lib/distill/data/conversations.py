"""Conversations to train on: what the teacher answered, what the prompts' own dataset did, or a published set."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from distill.config.training import Part
from distill.data.transforms import transformed
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.text.chat import Messages
from distill.text.sources import open_source


def training_conversations(files: Iterable[Path], part: Part) -> Iterator[Messages]:
    """Whole conversations, in the order of the files and of their rows.

    generated: `messages` of a dataset's Parquet files. original: prompts (JSONL) with the answer that their
    dataset had; a prompt without one is passed over. Any other source is read itself, and `files` are not: a row
    without an answer comes as it is, a malformed one as an empty conversation. `part.samples` and `part.corrupt` are
    applied.
    """
    if part.source == "generated":
        found = _generated(file for file in files if file.suffix == ".parquet")
    elif part.source == "original":
        found = _original(file for file in files if file.suffix == ".jsonl")
    else:
        found = _published(part)
    return transformed(found, part)


def _generated(files: Iterable[Path]) -> Iterator[Messages]:
    for file in files:
        try:
            for batch in pq.ParquetFile(file).iter_batches(columns=["messages"]):
                yield from batch.column("messages").to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors are one of the two
            raise DistillError(f"{file} cannot be read as a dataset of conversations ({error})") from None


def _original(files: Iterable[Path]) -> Iterator[Messages]:
    for file in files:
        for row in read_jsonl(file):
            if row["original"] is not None:
                yield [*row["messages"], {"role": "assistant", "content": row["original"]}]


def _published(part: Part) -> Iterator[Messages]:
    for found in open_source(part).conversations:
        if found is None:
            yield []
        elif found.original is None:
            yield found.messages
        else:
            yield [*found.messages, {"role": "assistant", "content": found.original}]
