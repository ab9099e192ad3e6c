"""Held-out scores of one model: greedy exact match, and the likelihood it gives to the reference answers."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from distill import SCHEMA_VERSION
from distill.checkpoints.info import read_info
from distill.checkpoints.store import load_weights
from distill.config import Evaluation
from distill.errors import DistillError
from distill.files import write_json
from distill.generation.engine import Engine, Request
from distill.generation.sampling import Draw
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.text.answers import same_answer
from distill.text.chat import Template, examples_tokens, prompt_id, prompts_tokens
from distill.text.sources import Conversation, read_conversations
from distill.text.tokenizer import Tokenizer, load_tokenizer
from distill.training.losses import token_sums


def evaluate(
    params: Path, settings: Evaluation, max_target_length: int, out: Path, *, name: str, template: Template
) -> str:
    """Score the model in `params` on held-out prompts, write `out`, and give a line that says how it did.

    exact_match: share of prompts whose greedy answer equals the reference, spaces at the ends aside.
    nll: mean over all tokens of the references, EOS included, of −log p in nats. Both are null where no
    prompt has a reference.
    max_target_length: prompt and answer together, in tokens.
    """
    info, tokenizer = read_info(params), load_tokenizer(params / "tokenizer")
    config, weights = load_weights(params)
    held_out = read_conversations(settings, settings.limit)
    prompts = prompts_tokens(tokenizer, [row.messages for row in held_out], template)
    limit = min(max_target_length, config.max_positions)
    for row, prompt in zip(held_out, prompts, strict=True):
        if len(prompt) >= limit:
            raise DistillError(
                f"{name}: held-out prompt {prompt_id(row.messages)} has {len(prompt)} tokens, with its "
                f"answer it may have {limit}: raise evaluation.max_target_length, or take the prompt out"
            )
    engine = Engine(config, weights, slots=settings.batch_size, max_length=limit, real_vocab=info.real_vocab)
    greedy, stop_ids = Draw(temperature=0.0), frozenset(info.eos_ids)
    requests = [Request(tuple(p), 0, 0, limit - len(p), greedy, stop_ids) for p in prompts]
    bar = tqdm(engine.run(requests), total=len(requests), desc=f"{name} answers", unit="prompt", file=sys.stderr)
    results = dict(bar)
    scored = [i for i, row in enumerate(held_out) if row.reference is not None]
    sums, tokens = np.zeros(len(held_out)), np.zeros(len(held_out))
    if scored:
        rows = [held_out[i] for i in scored]
        sums[scored], tokens[scored] = _reference_nll(
            config, weights, rows, tokenizer, template, info.real_vocab, settings.batch_size
        )
    answers = []
    for i, row in enumerate(held_out):
        result = results[i]
        stopped = result.finish_reason == "stop"
        text = tokenizer.decode(result.tokens[:-1] if stopped else result.tokens)
        judged = row.reference is not None
        answers.append(
            {
                "prompt_id": prompt_id(row.messages),
                "messages": row.messages,
                "reference": row.reference,
                "answer": text,
                "finish_reason": result.finish_reason,
                "correct": stopped and same_answer(text, row.reference) if judged else None,
                "nll": sums[i] / tokens[i] if judged else None,
            }
        )
    correct = sum(bool(answer["correct"]) for answer in answers)
    scores = {
        "exact_match": correct / len(scored) if scored else None,
        "nll": float(sums.sum() / tokens.sum()) if scored else None,
        "count": len(answers),
        "correct": correct,
        "tokens": int(tokens.sum()),
    }
    head = {"schema": SCHEMA_VERSION, "model": name, "digest": info.digest, "source": settings.source}
    write_json(out, head | scores | {"answers": answers})
    if not scored:
        return f"{name}: {len(answers)} answers, no reference to score them by"
    share, nll = scores["exact_match"], scores["nll"]
    return f"{name}: exact match {share:.1%} of {len(scored)}, NLL {nll:.4f} nats a token"


def _reference_nll(
    config: ModelConfig,
    weights: decoder.Params,
    rows: Sequence[Conversation],
    tokenizer: Tokenizer,
    template: Template,
    real_vocab: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed NLL (nats) and number of each row's reference tokens; padded vocabulary rows have no mass."""

    @jax.jit
    def score(weights: decoder.Params, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        def row(part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden, targets, mask = part
            logits = decoder.logits(config, weights, hidden)
            logits = jnp.where((jnp.arange(logits.shape[-1]) < real_vocab)[None], logits, -jnp.inf)
            return token_sums(logits, targets, mask).nll, jnp.sum(mask)

        hidden = decoder.forward(config, weights, tokens[:, :-1])  # padding is behind: nobody looks there
        return jax.lax.map(row, (hidden, tokens[:, 1:], mask[:, 1:]))  # one row's scores are held at a time

    whole = [[*row.messages, {"role": "assistant", "content": row.reference}] for row in rows]
    examples = list(examples_tokens(tokenizer, whole, template))
    longest = max(len(ids) for ids, _ in examples)
    if longest > config.max_positions:
        raise DistillError(f"a held-out reference needs {longest} tokens, the context is {config.max_positions}")
    length = -(-longest // 8) * 8 + 1
    sums, counts = [], []
    starts = range(0, len(examples), batch_size)
    for start in tqdm(starts, desc="reference likelihood", unit="batch", file=sys.stderr):
        part = examples[start : start + batch_size]
        tokens, mask = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.float32)
        for i, (ids, learned) in enumerate(part):
            tokens[i, : len(ids)], mask[i, : len(ids)] = ids, learned
        total, count = score(weights, tokens, mask)
        sums.append(np.asarray(total)[: len(part)])
        counts.append(np.asarray(count)[: len(part)])
    return np.concatenate(sums), np.concatenate(counts)
