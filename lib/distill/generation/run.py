"""A batch job: prompts in, completions out. A server has the model; here are rows, a journal, and a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.checkpoints.info import ModelInfo, read_info
from distill.config.generation import Generation
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.generation.history import History, Place, Turn, rounds
from distill.generation.seeds import request_seed
from distill.serving.client import Ask, Door, Failure, api_key, ask, open_door
from distill.serving.journal import Journal, Sample
from distill.serving.shared import Server, ensure_server
from distill.text.chat import Template


def generate_batch(
    params: Path, prompts: Path, out: Path, settings: Generation, *, work: Path, idle_seconds: float = 60,
    template: Template = "tokenizer", elsewhere: str | None = None,
) -> str:  # fmt: skip
    """Answer every prompt of a batch `num_generations` times, write that, and give a line that says so.

    What the journals in `work` know is not asked for again. Up to max_failed_rows prompts may stay without an
    answer: the file says which and why. Prompts that follow others are asked once these are answered, and written
    with `template`; one of their samples may have nothing to follow. elsewhere: a folder or a bucket that keeps the
    batch's journal too.
    """
    info, rows = read_info(params), read_jsonl(prompts)
    if (most := settings.told["top"]) > info.real_vocab:
        raise DistillError(
            f"{most} logits a token are asked for, the teacher has {info.real_vocab}: lower generation's"
        )
    for row in rows:
        if (length := len(row["prompt_token_ids"] or ())) > settings.max_prefill_length:
            raise DistillError(
                f"prompt {row['prompt_id']} has {length} tokens, max_prefill_length is "
                f"{settings.max_prefill_length}: raise it or let the filter drop it (prompts.overlong: drop)"
            )
    started, door = time.monotonic(), _door(params, info, settings, idle_seconds)
    history = History(params, template, min(settings.max_prefill_length, info.architecture.max_positions - 1))
    turns: dict[Place, Turn] = {}
    failed: dict[str, str] = {}
    unasked: list[tuple[Place, str]] = []
    missing, key = 0, _key(info, door, settings)
    with closing(Journal(work, key, prompts.stem, elsewhere)) as journal, _Progress(prompts.stem) as bar:

        def said(place: Place) -> Sample | None:
            return None if rows[place[0]]["prompt_id"] in failed else journal.known[turns[place].name, place[1]]

        def answered(one: Ask, answer: list[Sample] | Failure) -> None:
            if isinstance(answer, Failure):
                failed[rows[one.row]["prompt_id"]] = answer.reason
                _judge(failed, settings)
                return
            for number, sample in enumerate(answer, one.first):
                journal.add(turns[one.row, number].name, number, sample)
                bar.add(sample)

        for these in rounds(rows):
            places = [(row, number) for row in these for number in range(settings.num_generations)]
            found, left_out = history.turns(rows, places, turns, said)
            turns |= found
            unasked += left_out
            journal.look_up(turn.name for turn in found.values())
            asks = list(_missing(rows, places, turns, journal, settings, door))
            missing += sum(one.count for one in asks)
            bar.expect(missing)
            stop_ids, together = info.eos_ids if door.own else [], max((one.count for one in asks), default=1)
            ask(door, asks, settings.sampling, stop_ids, _concurrency(settings, together), answered, settings.told)
        journal.finish()
        written = [
            _completion(rows[place[0]], place[1], sample, turns[place])
            for place in sorted(turns)
            if (sample := said(place)) is not None
        ]
    lost = [(i, failed[i]) for row in rows if (i := row["prompt_id"]) in failed]
    lacking = [
        (name, number, reason)
        for (row, number), reason in sorted(unasked)
        if (name := rows[row]["prompt_id"]) not in failed
    ]
    _write(out, written, info, door, settings, lost, lacking)
    seconds, known = time.monotonic() - started, len(turns) - missing
    return (
        f"batch {prompts.stem}: {len(rows)} prompts, {len(written)} samples, "
        + (f"{known} of them known, " if known else "")
        + (f"{len(failed)} prompts without an answer, " if failed else "")
        + (f"{len(lacking)} turns with nothing to follow, " if lacking else "")
        + f"{bar.tokens} tokens in {seconds:.1f} s ({bar.tokens / max(seconds, 1e-9):.0f} tokens/s)"
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
    by = [door.facts["engine"], door.facts.get("kernels", "xla")] if door.own else [settings.endpoint, door.model]
    names = ("sampling", "max_target_length", "slots", "mesh", "int8", "top_logits", "sampled_logits")
    decides = {name: settings.decides[name] for name in names if name in settings.decides}
    return {"teacher": info.digest, "tokenizer": info.tokenizer_hash, "by": by, "seed": settings.seed, **decides}


def _missing(
    rows: list[dict], places: list[Place], turns: dict[Place, Turn], journal: Journal, settings: Generation, door: Door
) -> Iterator[Ask]:
    """What is to be asked: samples that the journal lacks, each once; a server of ours takes equal prompts together."""
    seen = set()
    coming: Ask | None = None
    for row, number in places:
        turn = turns.get((row, number))
        if turn is None or (turn.name, number) in journal.known or (turn.name, number) in seen:
            continue
        seen.add((turn.name, number))
        goes_on = coming and (coming.row, coming.first + coming.count) == (row, number) and coming.prompt == turn.ids
        if coming and goes_on and door.own:
            coming = replace(coming, count=coming.count + 1)
            continue
        if coming:
            yield coming
        seed, room = request_seed(settings.seed, rows[row]["prompt_id"]), settings.max_target_length - len(turn.ids)
        coming = Ask(row, turn.ids, seed, number, 1, room)
    if coming:
        yield coming


def _concurrency(settings: Generation, samples: int) -> int:
    """Requests in flight, of so many samples each: all slots filled, and half as many waiting for a free one."""
    return max(2, -(-3 * settings.slots // (2 * samples)))


def _judge(failed: dict[str, str], settings: Generation) -> None:
    if len(failed) > settings.max_failed_rows:
        prompt, reason = list(failed.items())[-1]
        raise DistillError(
            f"prompt {prompt} got no answer ({reason}), {len(failed)} of this batch by now: "
            f"generation.max_failed_rows, {settings.max_failed_rows} now, is how many may be left out"
        )


def _write(
    out: Path, written: list[dict], info: ModelInfo, door: Door, settings: Generation,
    failed: list[tuple[str, str]], unasked: list[tuple[str, int, str]],
) -> None:  # fmt: skip
    from distill.data.schema import CompletionsMetadata, write_completions  # Arrow loads while nobody waits for it
    from distill.data.topk import Told

    metadata = CompletionsMetadata(
        teacher=info.digest,
        tokenizer_hash=info.tokenizer_hash,
        sampling=settings.decides,
        seed=settings.seed,
        foreign=None if door.own else door.model,
        failed=failed,
        unasked=unasked,
        logits=Told(**settings.told, vocabulary=info.real_vocab) if any(settings.told.values()) else None,
    )
    write_completions(out, written, metadata)


def _completion(row: dict, number: int, sample: Sample, turn: Turn) -> dict:
    """A row of the completions' schema; the text leaves out the id that ended it."""
    completion = [{"role": "assistant", "content": sample.text}]
    return {
        "prompt_id": row["prompt_id"],
        "sample": number,
        "prompt": turn.messages,
        "completion": completion,
        "messages": turn.messages + completion,
        "prompt_token_ids": turn.ids,
        "completion_token_ids": sample.token_ids,
        "logprobs": sample.logprobs,
        "finish_reason": sample.finish_reason,
        "reference": row["reference"],
        **({"logits": sample.logits} if sample.logits is not None else {}),
    }


class _Progress:
    """Samples and tokens per second, and the time left, on stderr."""

    def __init__(self, name: str):
        self.bar = tqdm(total=0, desc=f"batch {name}", unit="sample", mininterval=1.0, file=sys.stderr)
        self.tokens, self.started = 0, time.monotonic()

    def expect(self, total: int) -> None:
        self.bar.total = total

    def add(self, sample: Sample) -> None:
        self.tokens += len(sample.token_ids or ())
        self.bar.set_postfix(tokens_s=round(self.tokens / (time.monotonic() - self.started)), refresh=False)
        self.bar.update()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
