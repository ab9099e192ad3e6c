"""A batch job: prompts in, completions out. A server has the model; here are rows, a journal, and a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.checkpoints.info import ModelInfo, read_info
from distill.config import Generation
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.generation.seeds import request_seed
from distill.serving.client import Ask, Door, Failure, api_key, ask, open_door
from distill.serving.journal import Journal, Sample, entry_name
from distill.serving.shared import Server, ensure_server


def generate_batch(
    params: Path, prompts: Path, out: Path, settings: Generation, *, work: Path, idle_seconds: float = 60
) -> str:
    """Answer every prompt of a batch `num_generations` times, write that, and give a line that says so.

    What the journals in `work` know is not asked for again. Up to max_failed_rows prompts may stay without an
    answer: the file says which and why.
    """
    info, rows = read_info(params), read_jsonl(prompts)
    if (most := settings.told["top"]) > info.real_vocab:
        raise DistillError(
            f"{most} logits a token are asked for, the teacher has {info.real_vocab}: lower generation's"
        )
    for row in rows:
        if (length := len(row["prompt_token_ids"])) > settings.max_prefill_length:
            raise DistillError(
                f"prompt {row['prompt_id']} has {length} tokens, max_prefill_length is "
                f"{settings.max_prefill_length}: raise it or let the filter drop it (prompts.overlong: drop)"
            )
    started, names = time.monotonic(), [entry_name(row["prompt_id"], row["prompt_token_ids"]) for row in rows]
    door = _door(params, info, settings, idle_seconds)
    failed: dict[str, str] = {}
    with closing(Journal(work, _key(info, door, settings), prompts.stem, names)) as journal:
        asks = list(_missing(rows, names, journal, settings, most=settings.num_generations if door.own else 1))
        missing = sum(one.count for one in asks)
        with _Progress(missing, prompts.stem) as progress:

            def answered(one: Ask, answer: list[Sample] | Failure) -> None:
                if isinstance(answer, Failure):
                    failed[rows[one.row]["prompt_id"]] = answer.reason
                    _judge(failed, settings)
                    return
                for number, sample in enumerate(answer, one.first):
                    journal.add(names[one.row], number, sample)
                    progress.add(sample)

            stop_ids = info.eos_ids if door.own else []
            ask(door, asks, settings.sampling, stop_ids, _concurrency(settings, door), answered, settings.told)
        journal.finish()
        written = [
            _completion(row, number, journal.known[name, number])
            for row, name in zip(rows, names, strict=True)
            if row["prompt_id"] not in failed
            for number in range(settings.num_generations)
        ]
    _write(out, written, info, door, settings, [(i, failed[i]) for row in rows if (i := row["prompt_id"]) in failed])
    seconds, known = time.monotonic() - started, len(rows) * settings.num_generations - missing
    return (
        f"batch {prompts.stem}: {len(rows)} prompts, {len(written)} samples, "
        + (f"{known} of them known, " if known else "")
        + (f"{len(failed)} prompts without an answer, " if failed else "")
        + f"{progress.tokens} tokens in {seconds:.1f} s ({progress.tokens / max(seconds, 1e-9):.0f} tokens/s)"
    )


def _door(params: Path, info: ModelInfo, settings: Generation, idle_seconds: float) -> Door:
    """The shared server, or the recipe's own; one of ours must have the same model and settings."""

    def find() -> Server:
        if settings.endpoint:
            return Server(settings.endpoint, api_key(), 0)
        return ensure_server(
            params, slots=settings.slots, max_length=settings.max_target_length, idle_seconds=idle_seconds,
            mesh=settings.mesh, int8=settings.int8, **settings.told,
        )  # fmt: skip

    door = open_door(find)
    asked = {kind: k for kind, k in settings.told.items() if k}
    if asked and not door.own:
        raise DistillError(
            f"the server at {door.server.url} is not ours and tells no logsumexp: leave generation's top_logits and "
            "sampled_logits out, and the stages that need logits have them from score_logits"
        )
    if door.own:
        expected = {"teacher": info.digest, "slots": settings.slots, "max_length": settings.max_target_length}
        expected |= {"mesh": settings.mesh.model_dump(), "int8": sorted(settings.int8)}
        for name, value in expected.items():
            if (found := door.facts.get(name)) != value:
                raise DistillError(
                    f"the server at {door.server.url} has {name} {found}, the recipe {value}: its answers would be "
                    "others, start one with the recipe's model and settings"
                )
        for kind, k in asked.items():
            if (tells := door.facts.get("told", {}).get(kind, 0)) < k:
                flag = {"top": "--top-logprobs", "sampled": "--sampled-logits"}[kind]
                raise DistillError(
                    f"the server at {door.server.url} tells {tells} {kind} logits a token, the recipe asks for {k}: "
                    f"start it with {flag} {k}"
                )
    return door


def _key(info: ModelInfo, door: Door, settings: Generation) -> dict[str, Any]:
    """What decides an answer beside its prompt and number."""
    by = door.facts["engine"] if door.own else [settings.endpoint, door.model]
    names = ("sampling", "max_target_length", "slots", "mesh", "int8", "top_logits", "sampled_logits")
    decides = {name: settings.decides[name] for name in names if name in settings.decides}
    return {"teacher": info.digest, "tokenizer": info.tokenizer_hash, "by": by, "seed": settings.seed, **decides}


def _missing(rows: list[dict], names: list[str], journal: Journal, settings: Generation, most: int) -> Iterator[Ask]:
    """What is to be asked: runs of up to `most` samples that the journal lacks, each prompt once."""
    seen = set()
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        if name in seen:
            continue
        seen.add(name)
        prompt = row["prompt_token_ids"]
        seed, room = request_seed(settings.seed, row["prompt_id"]), settings.max_target_length - len(prompt)
        first = 0
        while first < settings.num_generations:
            count = 0
            while count < min(most, settings.num_generations - first) and (name, first + count) not in journal.known:
                count += 1
            if count:
                yield Ask(index, prompt, seed, first, count, room)
            first += count or 1


def _concurrency(settings: Generation, door: Door) -> int:
    """Requests in flight: all slots filled, and half as many prompts waiting that are there when one is free."""
    samples = settings.num_generations if door.own else 1
    return max(2, -(-3 * settings.slots // (2 * samples)))


def _judge(failed: dict[str, str], settings: Generation) -> None:
    if len(failed) > settings.max_failed_rows:
        prompt, reason = list(failed.items())[-1]
        raise DistillError(
            f"prompt {prompt} got no answer ({reason}), {len(failed)} of this batch by now: "
            f"generation.max_failed_rows, {settings.max_failed_rows} now, is how many may be left out"
        )


def _write(
    out: Path, written: list[dict], info: ModelInfo, door: Door, settings: Generation, failed: list[tuple[str, str]]
) -> None:
    from distill.data.schema import CompletionsMetadata, write_completions  # Arrow loads while nobody waits for it
    from distill.data.topk import Told

    metadata = CompletionsMetadata(
        teacher=info.digest,
        tokenizer_hash=info.tokenizer_hash,
        sampling=settings.decides,
        seed=settings.seed,
        foreign=None if door.own else door.model,
        failed=failed,
        logits=Told(**settings.told, vocabulary=info.real_vocab) if any(settings.told.values()) else None,
    )
    write_completions(out, written, metadata)


def _completion(row: dict, number: int, sample: Sample) -> dict:
    """A row of the completions' schema; the text leaves out the id that ended it."""
    completion = [{"role": "assistant", "content": sample.text}]
    return {
        "prompt_id": row["prompt_id"],
        "sample": number,
        "prompt": row["messages"],
        "completion": completion,
        "messages": row["messages"] + completion,
        "prompt_token_ids": row["prompt_token_ids"],
        "completion_token_ids": sample.token_ids,
        "logprobs": sample.logprobs,
        "finish_reason": sample.finish_reason,
        "reference": row["reference"],
        **({"logits": sample.logits} if sample.logits is not None else {}),
    }


class _Progress:
    """Samples and tokens per second, and the time left, on stderr."""

    def __init__(self, total: int, name: str):
        self.bar = tqdm(total=total, desc=f"batch {name}", unit="sample", mininterval=1.0, file=sys.stderr)
        self.tokens, self.started = 0, time.monotonic()

    def add(self, sample: Sample) -> None:
        self.tokens += len(sample.token_ids or ())
        self.bar.set_postfix(tokens_s=round(self.tokens / (time.monotonic() - self.started)), refresh=False)
        self.bar.update()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
