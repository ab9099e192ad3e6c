"""The teacher's completions as Parquet: columns, metadata, and readers that check the metadata first."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill import SCHEMA_VERSION
from distill.data.topk import LOGSUMEXP, Told, from_text
from distill.errors import DistillError
from distill.files import replacing

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

COMPLETIONS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("messages", MESSAGES),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("completion_token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("reference", pa.string()),
    ]
)
"""One row a sample. `completion` is one assistant message, `messages` is `prompt` and `completion`;
`completion_token_ids` includes the EOS that ended it; `logprobs` are of the model's own, untempered
distribution, one a completion token; `finish_reason` is stop or length. `reference` may be null, and so may
ids and logprobs of the completion where a foreign server answered, which need not tell them."""

FOREIGN = ("completion_token_ids", "logprobs")

PREFIX = "distill."
OWN = "own"  # `foreign` of completions that came with the prompts


@dataclass(frozen=True)
class CompletionsMetadata:
    """Where completions came from: digest of the teacher, hash of its tokenizer, generation settings.

    foreign: the model's name at a server that is not ours, whose answers are not reproducible.
    failed: prompt_id and reason of each prompt that has no samples here, since it got no answer.
    unasked: prompt_id, sample and reason of each sample that had no history to follow: `unanswered`, where the turn
    before it was not answered to its end, or `overlong`, where history and question are too long together.
    logits: what the teacher told of each completion token beside it; there is a column for each part.
    """

    teacher: str
    tokenizer_hash: str
    sampling: dict[str, Any]
    seed: int
    foreign: str | None = None
    failed: Sequence[tuple[str, str]] = field(default=(), compare=False)  # a batch's own affair
    unasked: Sequence[tuple[str, int, str]] = field(default=(), compare=False)
    logits: Told | None = None
    schema_version: int = SCHEMA_VERSION

    def encode(self) -> dict[str, str]:
        """As Parquet keeps it, the same for equal metadata."""
        return {
            f"{PREFIX}schema_version": str(self.schema_version),
            f"{PREFIX}teacher": self.teacher,
            f"{PREFIX}tokenizer_hash": self.tokenizer_hash,
            f"{PREFIX}sampling": json.dumps(self.sampling, sort_keys=True),
            f"{PREFIX}seed": str(self.seed),
            f"{PREFIX}reproducible": json.dumps(self.foreign is None),
            **({f"{PREFIX}foreign": self.foreign} if self.foreign is not None else {}),
            **({f"{PREFIX}failed": json.dumps(list(self.failed))} if self.failed else {}),
            **({f"{PREFIX}unasked": json.dumps(list(self.unasked))} if self.unasked else {}),
            **({f"{PREFIX}logits": json.dumps(self.logits._asdict())} if self.logits else {}),
        }


def write_completions(out: Path, rows: Sequence[dict[str, Any]], metadata: CompletionsMetadata) -> None:
    """Write one batch, in one rename. Equal rows and metadata give equal bytes.

    A row of a batch with `metadata.logits` has them under `logits`, as `data.topk.as_text` writes them.
    """
    rows, told = list(rows), []
    if metadata.logits:
        told = [row["logits"] for row in rows]
        rows = [{name: value for name, value in row.items() if name != "logits"} for row in rows]
    for row in rows:
        _check_row(row, nullable={"reference", *(FOREIGN if metadata.foreign is not None else ())})
    table = pa.Table.from_pylist(rows, schema=COMPLETIONS)
    for name, width in (metadata.logits.widths if metadata.logits else {}).items():
        table = table.append_column(name, _told_column(name, width, rows, told))
    plain = [name for name in table.column_names if name not in (metadata.logits.widths if metadata.logits else ())]
    with replacing(out) as tmp:
        pq.write_table(
            table.replace_schema_metadata(metadata.encode()), tmp, compression="zstd", write_page_checksum=True,
            use_dictionary=plain,
        )  # fmt: skip


def read_completions(
    path: Path,
    *,
    teacher: str | None = None,
    tokenizer_hash: str | None = None,
    sampling: dict[str, Any] | None = None,
    columns: list[str] | None = None,
) -> tuple[pa.Table, CompletionsMetadata]:
    """Read one batch, or some `columns` of it. What is expected of its metadata is checked first."""
    with opened_completions(path) as (file, metadata):
        check_metadata(path, metadata, teacher=teacher, tokenizer_hash=tokenizer_hash, sampling=sampling)
        return file.read(columns=columns), metadata


@contextmanager
def opened_completions(path: Path) -> Iterator[tuple[pq.ParquetFile, CompletionsMetadata]]:
    """A batch's file, to be read in parts; what is broken in it is a `DistillError` whenever it is found."""
    path = Path(path)
    if not path.is_file():
        raise DistillError(f"completions {path} do not exist")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, memory_map=True) as file:
            yield file, _metadata(path, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DistillError(
            f"completions {path} are damaged ({reason}): delete the file, and the next run makes it again"
        ) from None


def check_metadata(path: Path, metadata: CompletionsMetadata, **expected: Any) -> None:
    """Refuse a file whose metadata has other values than are `expected`; None takes any."""
    for name, value in expected.items():
        if value is not None and (found := getattr(metadata, name)) != value:
            raise DistillError(
                f"completions {path}: {name} is {_short(found)}, {_short(value)} is expected: "
                "delete the file, and the next run makes it again"
            )


def column_bytes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Of a column of `Told.fields`: the number of tokens of each row, and the bytes of all of them, [N, W]."""
    rows = column.combine_chunks()
    rows = rows if isinstance(rows, pa.Array) else pa.concat_arrays(rows.chunks)
    flat = rows.flatten()
    width = flat.type.byte_width if pa.types.is_fixed_size_binary(flat.type) else 4
    values = np.frombuffer(flat.buffers()[1] or b"", np.uint8)
    values = values[flat.offset * width : (flat.offset + len(flat)) * width]
    return np.diff(rows.offsets.to_numpy()), values.reshape(len(flat), width)


def _metadata(path: Path, schema: pa.Schema) -> CompletionsMetadata:
    """Decode and check what does not depend on the reader: version, completeness, columns."""
    found = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    version = found.get(f"{PREFIX}schema_version")
    if version is None:
        raise DistillError(f"completions {path} have no {PREFIX}schema_version: the file is not one of ours")
    if version != str(SCHEMA_VERSION):
        raise DistillError(
            f"completions {path} have schema version {version}, this distill reads {SCHEMA_VERSION}: "
            "delete the file, or use the distill that wrote it"
        )
    try:
        metadata = CompletionsMetadata(
            teacher=found[f"{PREFIX}teacher"],
            tokenizer_hash=found[f"{PREFIX}tokenizer_hash"],
            sampling=json.loads(found[f"{PREFIX}sampling"]),
            seed=int(found[f"{PREFIX}seed"]),
            foreign=found.get(f"{PREFIX}foreign"),
            failed=[(prompt, reason) for prompt, reason in json.loads(found.get(f"{PREFIX}failed", "[]"))],
            unasked=[(prompt, sample, why) for prompt, sample, why in json.loads(found.get(f"{PREFIX}unasked", "[]"))],
            logits=Told(**json.loads(found[f"{PREFIX}logits"])) if f"{PREFIX}logits" in found else None,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DistillError(f"completions {path} have broken metadata ({error}): delete the file") from None
    wanted = [*COMPLETIONS, *(metadata.logits.fields() if metadata.logits else ())]
    wrong = [
        f"{field.name} {field.type}"
        for field in wanted
        if field.name not in schema.names or schema.field(field.name).type != field.type
    ]
    if wrong:
        raise DistillError(f"completions {path} lack {', '.join(wrong)}: delete the file")
    return metadata


def _told_column(name: str, width: int, rows: Sequence[dict], told: Sequence[dict[str, str]]) -> pa.Array:
    """One column of the logits: a list a row, of so many bytes a token."""
    parts, counts = [], [len(row["completion_token_ids"]) for row in rows]
    for row, text, count in zip(rows, told, counts, strict=True):
        part = from_text({name: text[name]}, count)[name]
        if count and part.shape[1] != width:
            raise ValueError(f"row {row['prompt_id']} sample {row['sample']}: {name} is not {width} bytes a token")
        parts.append(part.reshape(-1))
    values = np.concatenate([*parts, np.zeros(0, np.uint8)])
    kind = pa.float32() if name == LOGSUMEXP else pa.binary(width)
    offsets = pa.array(np.cumsum([0, *counts]), pa.int32())
    flat = pa.Array.from_buffers(kind, values.size // width, [None, pa.py_buffer(values)])
    return pa.ListArray.from_arrays(offsets, flat)


def _check_row(row: dict[str, Any], nullable: set[str]) -> None:
    """Arrow fills what is missing with null and drops what it does not know: a fault of ours stops here."""
    name = f"{row.get('prompt_id')} sample {row.get('sample')}"
    if set(row) != set(COMPLETIONS.names):
        raise ValueError(f"row {name} has columns {sorted(row)}, not {sorted(COMPLETIONS.names)}")
    if null := [column for column, value in row.items() if value is None and column not in nullable]:
        raise ValueError(f"row {name} has no {', '.join(null)}")
    if row["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"row {name}: finish_reason is {row['finish_reason']!r}, not stop or length")
    logprobs, tokens = row["logprobs"], row["completion_token_ids"]
    if logprobs is not None and tokens is not None and len(logprobs) != len(tokens):
        raise ValueError(f"row {name} has {len(logprobs)} logprobs for {len(tokens)} tokens")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 16 or not isinstance(value, str) else f"{text[:16]}…"
