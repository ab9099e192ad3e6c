import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.schema import COMPLETIONS, CompletionsMetadata, read_completions, write_completions
from distill.errors import DistillError
from distill.files import file_digest

METADATA = CompletionsMetadata("ab" * 32, "cd" * 32, {"num_generations": 2, "sampling": {"strategy": "greedy"}}, 7)
USER, ANSWER = {"role": "user", "content": "né?"}, {"role": "assistant", "content": "oui"}


def row(prompt_id: str = "p0", sample: int = 0, **changes: object) -> dict:
    return {
        "prompt_id": prompt_id,
        "sample": sample,
        "prompt": [USER],
        "completion": [ANSWER],
        "messages": [USER, ANSWER],
        "prompt_token_ids": [1, 2],
        "completion_token_ids": [3, 4, 5],
        "logprobs": [-0.5, -1.0, -0.25],
        "finish_reason": "stop",
        "reference": None,
    } | changes


def test_rows_and_metadata_come_back(tmp_path: Path) -> None:
    rows = [
        row(),
        row(sample=1, reference="oui", finish_reason="length", logprobs=[], completion_token_ids=[]),
    ]
    write_completions(tmp_path / "0000.parquet", rows, METADATA)
    table, metadata = read_completions(tmp_path / "0000.parquet")
    assert table.to_pylist() == rows
    assert metadata == METADATA
    assert table.schema.remove_metadata() == COMPLETIONS
    some, _ = read_completions(tmp_path / "0000.parquet", columns=["prompt", "sample"])
    assert some.column_names == ["prompt", "sample"]


def test_an_empty_batch_is_a_file_too(tmp_path: Path) -> None:
    write_completions(tmp_path / "0000.parquet", [], METADATA)
    table, metadata = read_completions(tmp_path / "0000.parquet", teacher=METADATA.teacher)
    assert (len(table), metadata) == (0, METADATA)


def test_equal_rows_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; from distill.data.schema import *;"
        "rows, metadata = json.loads(sys.argv[2]);"
        "write_completions(Path(sys.argv[1]), rows, CompletionsMetadata(**metadata))"
    )
    rows = [row(sample=i) for i in range(100)]
    backwards = dict(reversed(METADATA.sampling.items()))
    arguments = json.dumps([rows, vars(METADATA) | {"sampling": backwards}])
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.parquet", arguments], check=True)
    write_completions(tmp_path / "b.parquet", rows, METADATA)
    assert file_digest(tmp_path / "a.parquet") == file_digest(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("expected", "complaint"),
    [
        ({"teacher": "ef" * 32}, "teacher is abababababababab…, efefefefefefefef… is expected: delete"),
        ({"tokenizer_hash": "x"}, "tokenizer_hash is cdcdcdcdcdcdcdcd…, x is expected"),
        ({"sampling": {"num_generations": 3}}, r'sampling is {"num_gen.*}, {"num_generations": 3} is'),
    ],
)  # fmt: skip
def test_other_completions_than_expected_are_refused_before_their_rows_are_read(
    tmp_path: Path, expected: dict, complaint: str
) -> None:
    path = tmp_path / "0000.parquet"
    write_completions(path, [row()], METADATA)
    known = {name: getattr(METADATA, name) for name in expected}
    assert len(read_completions(path, **known)[0]) == 1
    spoil_rows(path)
    with pytest.raises(DistillError, match=complaint) as refusal:
        read_completions(path, **expected)
    assert str(path) in str(refusal.value)


def spoil_rows(path: Path) -> None:
    """Flip bytes of the first column's data; the footer stays as it was."""
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    for i in range(start + 20, start + 40):
        content[i] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def without_metadata(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def newer(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"distill.schema_version": b"9"}), path)


def half_metadata(path: Path) -> None:
    table = pq.read_table(path)
    kept = {key: value for key, value in table.schema.metadata.items() if key != b"distill.seed"}
    pq.write_table(table.replace_schema_metadata(kept), path)


def other_column(path: Path) -> None:
    table = pq.read_table(path)
    wrong = table.set_column(1, "sample", table["sample"].cast(pa.int64())).drop_columns(["logprobs"])
    pq.write_table(wrong, path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_rows, "are damaged"),
        (cut, "are damaged"),
        (lambda path: path.write_bytes(b""), "are damaged"),
        (lambda path: path.unlink(), "do not exist"),
        (without_metadata, r"have no distill\.schema_version: the file is not one of ours"),
        (newer, "have schema version 9, this distill reads 1"),
        (half_metadata, r"have broken metadata \('distill\.seed'\)"),
        (other_column, "lack sample int32, logprobs list"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, spoil, complaint: str) -> None:
    path = tmp_path / "0000.parquet"
    write_completions(path, [row(sample=i) for i in range(50)], METADATA)
    spoil(path)
    with pytest.raises(DistillError, match=complaint) as refusal:
        read_completions(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes", [{"finish_reason": "eos"}, {"logprobs": [-1.0]}, {"top_ids": []}, {"prompt_id": None}]
)
def test_a_row_that_breaks_the_schema_is_not_written(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(ValueError, match="row "):
        write_completions(tmp_path / "0000.parquet", [row(**changes)], METADATA)
    assert not list(tmp_path.iterdir())
