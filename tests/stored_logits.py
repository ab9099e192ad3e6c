"""A tiny teacher, completions that its engine wrote, and their file with logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.info import ModelInfo
from distill.checkpoints.store import load_weights
from distill.data.schema import CompletionsMetadata, write_completions
from distill.data.topk import Told, as_text, packed
from distill.generation.engine import Engine
from distill.generation.requests import Request, Result
from distill.generation.seeds import request_seed
from distill.text.chat import prompt_id, prompts_tokens
from distill.text.tokenizer import load_tokenizer

TOLD = Told(6, 12, 35)
SEED = 5


@dataclass(frozen=True)
class Written:
    """What the teacher wrote."""

    params: Path
    info: ModelInfo
    rows: list[dict]
    results: list[Result]

    def write(self, out: Path, rows: Sequence[dict] | None = None, **changes: object) -> Path:
        values = {"teacher": self.info.digest, "tokenizer_hash": self.info.tokenizer_hash, "logits": TOLD} | changes
        metadata = CompletionsMetadata(sampling={"max_target_length": 64}, seed=SEED, **values)
        write_completions(out, self.rows if rows is None else rows, metadata)
        return out


def written(folder: Path, prompts: int = 9, samples: int = 2) -> Written:
    """`prompts` × `samples` completions of an engine that tells both kinds of logits."""
    hf = tiny_llama(folder / "hf", seed=4)
    info = import_checkpoint(hf, folder / "params", dtype="float32", origin="tiny")
    config, weights = load_weights(folder / "params")
    engine = Engine(
        config, weights, slots=8, max_length=64, real_vocab=info.real_vocab, top=TOLD.top, sampled=TOLD.sampled
    )
    tokenizer = load_tokenizer(folder / "params/tokenizer")
    turns = [[{"role": "user", "content": f"say {'abcdefghijklm'[: i + 1]}"}] for i in range(prompts)]
    ids = prompts_tokens(tokenizer, turns, "tokenizer")
    asked = [(p, s) for p in range(prompts) for s in range(samples)]
    requests = [
        Request(tuple(ids[p]), request_seed(SEED, prompt_id(turns[p])), s, 14, stop_ids=frozenset(info.eos_ids))
        for p, s in asked
    ]
    results = [result for _, result in sorted(engine.run(requests), key=lambda item: item[0])]
    rows = []
    for (p, s), result in zip(asked, results, strict=True):
        text = tokenizer.decode(result.tokens)
        answer = [{"role": "assistant", "content": text}]
        rows.append(
            {
                "prompt_id": prompt_id(turns[p]), "sample": s, "prompt": turns[p], "completion": answer,
                "messages": turns[p] + answer, "prompt_token_ids": ids[p], "completion_token_ids": result.tokens,
                "logprobs": result.logprobs, "finish_reason": result.finish_reason, "reference": None,
                "logits": as_text(packed(result.told, TOLD.vocabulary)),
            }
        )  # fmt: skip
    return Written(folder / "params", info, rows, results)


def stacked(result: Result, name: str) -> np.ndarray:
    return np.stack(result.told[name])
