"""Finished samples, appended as they come: what a killed batch had is not asked for again.

`{work}/{key}/{batch}.jsonl` has a line a sample. The key covers teacher, engine code, sampling and seed, so that
an entry is told from another by its prompt and sample alone, whatever batch it was in. `{batch}.ids` lists the
prompts of a file that a job has finished with; a file without a current list is searched itself. Nothing here
is declared to Snakemake, and all of it may be deleted.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.files import digest, replacing
from distill.kept import Kept


@dataclass(frozen=True)
class Sample:
    """One answer. Token ids and logprobs are None where a foreign server did not tell them.

    logits: what was told of each token beside it, if that was asked for, as `data.topk.as_text` writes it.
    """

    text: str
    finish_reason: str
    token_ids: list[int] | None
    logprobs: list[float] | None
    logits: dict[str, str] | None = None


def entry_name(prompt_id: str, prompt_token_ids: list[int]) -> str:
    """What a prompt is called in a journal: messages and the template's rendering of them."""
    return digest([prompt_id, prompt_token_ids])[:16]


class Journal:
    """The journal of one batch, open for appending; what other batches know is looked up when it is asked for.

    elsewhere: a folder or a bucket that keeps this batch's file too, for a machine that has none.
    """

    def __init__(self, work: Path, key: dict[str, Any], batch: str, elsewhere: str | None = None):
        self.file = work / digest(key)[:16] / f"{batch}.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        place = f"{elsewhere}/{self.file.parent.name}/{batch}"
        self.kept = Kept(self.file, place, lambda file: [file]) if elsewhere else None
        if self.kept:
            self.kept.fetch()
        self.known: dict[tuple[str, int], Sample] = {}
        self._out = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._out).st_size
        if size and os.pread(self._out, 1, size - 1) != b"\n":
            os.write(self._out, b"\n")  # a line that a kill tore stays alone
        if self.kept:
            self.kept.start()

    def look_up(self, names: Iterable[str]) -> None:
        """Let `known` have what any batch's journal tells of these prompts."""
        wanted = set(names)
        for file in sorted(self.file.parent.glob("*.jsonl")):
            listed = _listed(file) if file != self.file else None
            if listed is None or not wanted.isdisjoint(listed):
                self.known |= {entry: sample for entry, sample in _read(file) if entry[0] in wanted}

    def add(self, name: str, number: int, sample: Sample) -> None:
        """Keep a finished sample: one write of one line."""
        line = json.dumps({"prompt": name, "sample": number, **asdict(sample)}, ensure_ascii=False)
        os.write(self._out, line.encode() + b"\n")
        self.known[name, number] = sample

    def finish(self) -> None:
        """List the prompts of the file, for batches that look for theirs."""
        if _listed(self.file) is not None:
            return
        names = sorted({name for (name, _), _ in _read(self.file)})
        with replacing(self.file.with_suffix(".ids")) as tmp:
            tmp.write_text("\n".join([str(self.file.stat().st_size), *names]))

    def close(self) -> None:
        os.close(self._out)
        if self.kept:
            self.kept.close()


def _listed(file: Path) -> set[str] | None:
    """The prompts of a journal by its list; None where that is missing or older than the journal."""
    try:
        size, *names = file.with_suffix(".ids").read_text().split("\n")
    except FileNotFoundError:
        return None
    return set(names) if size == str(file.stat().st_size) else None


def _read(file: Path) -> Iterator[tuple[tuple[str, int], Sample]]:
    """The entries of a file; a torn line is none."""
    if file.exists():
        with file.open("rb") as lines:
            for line in lines:
                try:
                    values = json.loads(line)
                    entry = values.pop("prompt"), values.pop("sample")
                    yield entry, Sample(**values)
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue
