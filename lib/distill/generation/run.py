"""A batch job: prompts in, completions out. The engine stands behind one narrow door, `answers`."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from distill.checkpoints.store import load_weights, read_info
from distill.config import Generation
from distill.data.schema import CompletionsMetadata, write_completions
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.generation.engine import Engine, Request, Result
from distill.generation.sampling import Draw, request_seed
from distill.text.tokenizer import Tokenizer, load_tokenizer


def generate_batch(params: Path, prompts: Path, out: Path, settings: Generation) -> str:
    """Answer every prompt of a batch `num_generations` times, write that, and give a line that says so."""
    info, rows = read_info(params), read_jsonl(prompts)
    tokenizer = load_tokenizer(params / "tokenizer")
    for row in rows:
        if (length := len(row["prompt_token_ids"])) > settings.max_prefill_length:
            raise DistillError(
                f"prompt {row['prompt_id']} has {length} tokens, max_prefill_length is "
                f"{settings.max_prefill_length}: raise it or let the filter drop it (prompts.overlong: drop)"
            )
    asked = [(row, sample) for row in rows for sample in range(settings.num_generations)]
    draw, stop_ids = Draw.of(settings.sampling), frozenset(info.eos_ids)
    requests = [
        Request(
            prompt=tuple(row["prompt_token_ids"]),
            seed=request_seed(settings.seed, row["prompt_id"]),
            sample=sample,
            max_tokens=settings.max_target_length - len(row["prompt_token_ids"]),
            draw=draw,
            stop_ids=stop_ids,
        )
        for row, sample in asked
    ]
    started = time.monotonic()
    results = dict(_with_progress(answers(params, requests, settings), len(requests), prompts.stem))
    written = [_completion(row, sample, results[i], tokenizer) for i, (row, sample) in enumerate(asked)]
    metadata = CompletionsMetadata(
        teacher=info.digest,
        tokenizer_hash=info.tokenizer_hash,
        sampling=settings.model_dump(mode="json", exclude={"seed"}),
        seed=settings.seed,
    )
    write_completions(out, written, metadata)
    tokens = sum(len(result.tokens) for result in results.values())
    seconds = time.monotonic() - started
    return (
        f"batch {prompts.stem}: {len(rows)} prompts, {len(requests)} samples, {tokens} tokens "
        f"in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.0f} tokens/s)"
    )


def answers(params: Path, requests: Sequence[Request], settings: Generation) -> Iterator[tuple[int, Result]]:
    """(index of the request, its result), each as soon as it has ended, from the model in `params`."""
    if not requests:
        return
    info = read_info(params)
    config, weights = load_weights(params)
    engine = Engine(
        config,
        weights,
        slots=settings.slots,
        max_length=settings.max_target_length,
        real_vocab=info.real_vocab,
    )
    yield from engine.run(requests)


def _completion(row: dict, sample: int, result: Result, tokenizer: Tokenizer) -> dict:
    """A row of the completions' schema; the text leaves out the id that ended it."""
    stopped = result.finish_reason == "stop"
    text = tokenizer.decode(result.tokens[:-1] if stopped else result.tokens)
    completion = [{"role": "assistant", "content": text}]
    return {
        "prompt_id": row["prompt_id"],
        "sample": sample,
        "prompt": row["messages"],
        "completion": completion,
        "messages": row["messages"] + completion,
        "prompt_token_ids": row["prompt_token_ids"],
        "completion_token_ids": result.tokens,
        "logprobs": result.logprobs,
        "finish_reason": result.finish_reason,
        "reference": row["reference"],
    }


def _with_progress(results: Iterator[tuple[int, Result]], total: int, name: str) -> Iterator[tuple[int, Result]]:
    """Samples and tokens per second, and the time left, on stderr."""
    tokens, started = 0, time.monotonic()
    with tqdm(total=total, desc=f"batch {name}", unit="sample", mininterval=1.0, file=sys.stderr) as bar:
        for index, result in results:
            tokens += len(result.tokens)
            bar.set_postfix(tokens_s=round(tokens / (time.monotonic() - started)), refresh=False)
            bar.update()
            yield index, result
