"""Completions to a dataset: filter batch by batch, write Parquet shards, card and ledger."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.config.dataset import Dataset
from distill.data.card import CardFacts, write_card
from distill.data.filters import Filter, Sample, Scores, best, filters, judge, judged
from distill.data.ledger import Account, Ledger
from distill.data.schema import COMPLETIONS, MESSAGES, CompletionsMetadata, read_completions
from distill.data.shards import Shards
from distill.errors import DistillError
from distill.files import read_json, replacing, write_json
from distill.text.answers import without_thought
from distill.text.chat import prompt_id

COLUMNS = ["prompt", "completion", "messages", "prompt_id", "sample"]
DATASET = pa.schema([COMPLETIONS.field(name) for name in COLUMNS])
PROVENANCE = pa.schema(
    [
        ("batch", pa.string()),
        ("finish_reason", pa.string()),
        ("reference", pa.string()),
        ("mean_logprob", pa.float32()),
        ("completion_tokens", pa.int32()),
        ("teacher", pa.string()),
        ("seed", pa.int64()),
    ]
)
"""Where a row comes from: its batch's file, how the answer ended, the right answer where there is one, the mean of
its tokens' logprobs and their number (null where a foreign server did not tell), the digest of the teacher's weights
(or the name of the foreign model) and the seed."""
JUDGED = pa.field("judge_score", pa.float32())  # null where the judge was not asked


def _provenance(settings: Dataset) -> pa.Schema:
    """The columns that a row has of it."""
    if not settings.provenance:
        return pa.schema([])
    return PROVENANCE.append(JUDGED) if settings.judge else PROVENANCE


def assemble(
    completions: Sequence[Path],
    index: dict[str, Any],
    settings: Dataset,
    num_generations: int,
    card: CardFacts,
    out: Path,
    teacher: str | None = None,
    work: Path | None = None,
) -> Ledger:
    """Write the dataset folder `out` in one rename and return its ledger; two batches are in memory at a time.

    `completions` are the files of all batches that `index` (index.json) lists, named {batch}.parquet. `teacher` is
    the digest that they must have; None takes any, as long as it is one. `work` is where a judge's sayings are kept.
    """
    files = {path.stem: path for path in map(Path, completions)}
    if odd := sorted(files.keys() ^ index["batches"].keys()):
        raise DistillError(f"batches {', '.join(odd)} are in the prompt index or among the completions, not in both")
    scores = _judge(settings, work)
    schema = pa.schema([*DATASET, *_provenance(settings)])
    accounts = {}
    first = None
    with replacing(out) as tmp, ExitStack() as stack:
        chosen = filters(settings)
        for each in chosen:
            stack.callback(getattr(each, "close", lambda: None))
        tmp.mkdir(parents=True)
        pool = stack.enter_context(ThreadPoolExecutor(cpu_count() or 1))
        names = ["train", "test"] if settings.held_out else ["train"]
        splits = [stack.enter_context(Shards(tmp, name, schema, settings.shard_rows, settings.jsonl)) for name in names]
        for name, (table, metadata) in _read(index["batches"], files, settings, teacher):
            path, prompts = files[name], _prompts(name, index["batches"][name])
            first = first or metadata
            if metadata != first:
                raise DistillError(
                    f"completions {path} were made otherwise than the first batch ({metadata}, {first}): "
                    "delete the older ones, and the next run makes them again"
                )
            asked, missing = prompts.kept * num_generations, Counter(reason for *_, reason in metadata.unasked)
            missing["failed"] = len(metadata.failed) * num_generations
            if len(table) + missing.total() != asked:
                raise DistillError(
                    f"completions {path} have {len(table)} samples, not {prompts.kept} prompts × "
                    f"{num_generations}: delete the file, and the next run makes it again"
                )
            kept, dropped = _kept(table, name, metadata, settings, chosen, scores, pool, splits)
            accounts[name] = (prompts, Account(asked, kept, dropped + missing))
        ledger = Ledger(num_generations, accounts)
        if ledger.samples.kept == 0:
            raise DistillError(
                f"no sample is left for the dataset ({ledger.summary()}): raise max_target_length, set "
                "dataset.keep_length, or look at what the teacher answers"
            )
        counts = {split.split: (split.count, split.bytes) for split in splits}
        if empty := [name for name, (count, _) in counts.items() if not count]:
            raise DistillError(
                f"split {empty[0]} of the dataset is empty, dataset.held_out is {settings.held_out} of "
                f"{ledger.samples.kept} samples: change it, or leave it out"
            )
        columns = [*COLUMNS, *_provenance(settings).names]
        form = dict.fromkeys(("license", "shard_rows", "provenance", "jsonl", "completions"), True)
        form |= {"judge": {"endpoint", "concurrency"}}  # all else decides which rows there are
        chosen_by = settings.model_dump(mode="json", exclude_defaults=True, exclude=form)
        text = write_card(card, index, first, ledger, counts, columns, chosen_by)
        (tmp / "README.md").write_text(text, encoding="utf-8")
        write_json(tmp / "ledger.json", ledger.encode())
    return ledger


def _judge(settings: Dataset, work: Path | None) -> Scores | None:
    """Who scores answers, where somebody does."""
    if settings.judge is None:
        return None
    if work is None:
        raise ValueError("a judge needs `work`")
    from distill.data.judge import Judged  # the client's import takes long: only who has a judge pays

    return Judged(settings.judge, work).scores


def digest_of(params: Path) -> str | None:
    """The digest of a model's weights, also where they are gone, as they may be once all is generated.

    None where nothing is left that tells it.
    """
    told = (file for file in (params / "model.json", params.parent / "imported.json") if file.is_file())
    return next((read_json(file)["digest"] for file in told), None)


def _read(
    batches: dict[str, Any], files: dict[str, Path], settings: Dataset, teacher: str | None
) -> Iterator[tuple[str, tuple[pa.Table, CompletionsMetadata]]]:
    """Each batch's table and metadata; the next one is read while this one is judged."""
    columns = [*COLUMNS, "finish_reason", "reference"]
    scored = (settings.quality and settings.quality.min_logprob is not None) or (
        settings.best and settings.best.by == "logprob"
    )
    if settings.provenance or scored:
        columns.append("logprobs")
    read = partial(read_completions, columns=columns, teacher=teacher)
    with ThreadPoolExecutor(1) as ahead:
        names = list(batches)
        coming = ahead.submit(read, files[names[0]]) if names else None
        for name, following in zip(names, [*names[1:], None], strict=True):
            found = coming.result()
            if following is not None:
                coming = ahead.submit(read, files[following])
            yield name, found


def _prompts(name: str, batch: dict[str, Any]) -> Account:
    try:
        return Account(batch["read"], batch["kept"], batch["dropped"])
    except ValueError as error:
        raise DistillError(f"prompt index, batch {name}: {error}: delete index.json") from None


def _kept(
    table: pa.Table,
    name: str,
    metadata: CompletionsMetadata,
    settings: Dataset,
    chosen: list[Filter],
    scores: Scores | None,
    pool: Executor,
    splits: list[Shards],
) -> tuple[int, Counter[str]]:
    """Write what stays of a batch to its split; how many rows, and how many go for which reason."""
    if settings.think == "drop":
        table = _without_thoughts(table)
    logprobs = _mean_logprobs(table) if "logprobs" in table.column_names else None
    samples = _samples(table, logprobs)
    reasons = judge(chosen, samples, pool)
    if scores is not None:
        samples = judged(samples, reasons, scores, settings.judge.min_score, settings.best and settings.best.keep)
    if settings.best is not None:
        best(samples, reasons, settings.best.keep, settings.best.by)
    if settings.provenance:
        table = _with_provenance(table, name, metadata, logprobs)
        table = table.append_column("judge_score", pa.array([sample.score for sample in samples], pa.float32()))
    table = table.select(splits[0].schema.names)
    keep = np.array([reason is None for reason in reasons], bool)
    held_out = np.zeros(len(table), bool)
    if settings.held_out:
        held_out = np.array([_held_out(sample, settings) for sample in samples], bool)
    for split, rows in zip(splits, (keep & ~held_out, keep & held_out), strict=False):
        split.write(table.filter(pa.array(rows)))
    return int(keep.sum()), Counter(reason for reason in reasons if reason is not None)


def _held_out(sample: Sample, settings: Dataset) -> bool:
    """By hash of the prompt: all of its samples are on one side, in every run and whatever else there is.

    So are all turns of a conversation, by the id of its first one: a later turn has the earlier ones in it.
    """
    name = sample.prompt_id
    users = [i for i, message in enumerate(sample.prompt) if message["role"] == "user"]
    if len(users) > 1:
        name = prompt_id(list(sample.prompt[: users[0] + 1]))
    drawn = blake2b(f"{settings.held_out_seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") < settings.held_out * 2**64


def _samples(table: pa.Table, logprobs: np.ndarray | None) -> list[Sample]:
    texts = _answers(table).to_pylist()
    columns = (table[column].to_pylist() for column in ("prompt_id", "finish_reason", "reference", "prompt"))
    means = [None] * len(table) if logprobs is None else [None if np.isnan(mean) else float(mean) for mean in logprobs]
    return [
        Sample(prompt_id, text, finish_reason, reference, mean, prompt)
        for prompt_id, finish_reason, reference, prompt, text, mean in zip(*columns, texts, means, strict=True)
    ]


def _answers(table: pa.Table) -> pa.Array:
    """The text of each row's completion, which is one message."""
    return pc.struct_field(pc.list_flatten(table["completion"]), "content")


def _mean_logprobs(table: pa.Table) -> np.ndarray:
    """Mean of each row's logprobs, NaN where there is none."""
    means = []
    for chunk in table["logprobs"].chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
        total = np.concatenate([[0.0], np.cumsum(pc.list_flatten(chunk).to_numpy(), dtype=np.float64)])
        ends = np.cumsum(lengths)
        with np.errstate(invalid="ignore"):
            means.append((total[ends] - total[ends - lengths]) / lengths)
    return np.concatenate(means) if means else np.zeros(0)


def _without_thoughts(table: pa.Table) -> pa.Table:
    """Completions and conversations without what comes before `</think>`."""
    answers = [without_thought(text) for text in _answers(table).to_pylist()]
    prompts = table["prompt"].to_pylist()
    completion = [[{"role": "assistant", "content": text}] for text in answers]
    messages = [prompt + answer for prompt, answer in zip(prompts, completion, strict=True)]
    for column, values in (("completion", completion), ("messages", messages)):
        table = table.set_column(table.column_names.index(column), column, pa.array(values, MESSAGES))
    return table


def _with_provenance(
    table: pa.Table, name: str, metadata: CompletionsMetadata, logprobs: np.ndarray | None
) -> pa.Table:
    rows = len(table)
    values = {
        "batch": pa.repeat(pa.scalar(name), rows),
        "mean_logprob": pa.array(logprobs, pa.float32(), from_pandas=True),
        "completion_tokens": pc.cast(pc.list_value_length(table["logprobs"]), pa.int32()),
        "teacher": pa.repeat(pa.scalar(metadata.foreign or metadata.teacher), rows),
        "seed": pa.repeat(pa.scalar(metadata.seed, pa.int64()), rows),
    }
    for column, array in values.items():
        table = table.append_column(column, array)
    return table
