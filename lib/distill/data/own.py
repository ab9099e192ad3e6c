"""Completions that came with the prompts, in place of a teacher's: through the same filters, ledger and card."""

from pathlib import Path

from distill.checkpoints.info import read_info
from distill.data.schema import OWN, CompletionsMetadata, write_completions
from distill.files import read_jsonl


def take_completions(teacher: Path, prompts: Path, out: Path) -> str:
    """Write a batch's completions from its prompts, and return a line for a person.

    The teacher's params folder is asked for its tokenizer alone. A prompt that came without an answer has no
    sample and is counted as failed; nobody told token ids and logprobs.
    """
    info = read_info(teacher)
    rows, failed = [], []
    for row in read_jsonl(prompts):
        if row["original"] is None:
            failed.append((row["prompt_id"], "it came without a completion"))
            continue
        completion = [{"role": "assistant", "content": row["original"]}]
        rows.append(
            {
                "prompt_id": row["prompt_id"],
                "sample": 0,
                "prompt": row["messages"],
                "completion": completion,
                "messages": [*row["messages"], *completion],
                "prompt_token_ids": row["prompt_token_ids"],
                "completion_token_ids": None,
                "logprobs": None,
                "finish_reason": "stop",
                "reference": row["reference"],
            }
        )
    metadata = CompletionsMetadata(info.digest, info.tokenizer_hash, {}, 0, foreign=OWN, failed=failed)
    write_completions(out, rows, metadata)
    return f"{len(rows):,} completions that came with their prompts, {len(failed):,} prompts without one"
