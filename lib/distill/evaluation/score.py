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
from distill.config.results import Evaluation
from distill.errors import DistillError
from distill.files import write_json
from distill.generation.engine import Engine
from distill.generation.requests import Request
from distill.generation.sampling import Draw
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.text.answers import same_answer
from distill.text.chat import Template, examples_tokens, prompt_id, prompts_tokens
from distill.text.compatibility import compare
from distill.text.sources import Conversation, read_conversations
from distill.text.tokenizer import Tokenizer, load_tokenizer
from distill.training.divergences import forward_kl, log_probs
from distill.training.losses import masked_sum, token_sums

Weights = tuple[ModelConfig, decoder.Params]
Reference = tuple[list[int], list[int]]


def evaluate(
    params: Path,
    settings: Evaluation,
    max_target_length: int,
    out: Path,
    *,
    name: str,
    template: Template,
    teacher: Path | None = None,
) -> str:
    """Score the model in `params` on held-out prompts, write `out`, and give a line that says how it did.

    exact_match: share of prompts whose greedy answer equals the reference, spaces at the ends aside.
    nll: mean over all tokens of the references, EOS included, of −log p in nats. Both are null where no
    prompt has a reference.
    kl, agreement: over the same tokens, mean KL(teacher ‖ model) in nats, and the share where both find the same
    token likeliest; null without a teacher, and where it has another tokenizer.
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
    scored = [i for i, row in enumerate(held_out) if row.reference is not None]
    teacher = teacher if scored and teacher and _comparable(params, teacher) else None
    contexts = {name: config.max_positions}
    if teacher is not None:
        contexts["the teacher"] = read_info(teacher).architecture.max_positions
    references = _references(tokenizer, [held_out[i] for i in scored], template)
    for i, (ids, _) in zip(scored, references, strict=True):
        for side, context in contexts.items():
            if len(ids) > context:
                raise DistillError(
                    f"{name}: held-out prompt {prompt_id(held_out[i].messages)} has {len(ids)} tokens with its "
                    f"reference, the context of {side} is {context}: take the prompt out"
                )
    engine = Engine(config, weights, slots=settings.batch_size, max_length=limit, real_vocab=info.real_vocab)
    greedy, stop_ids = Draw(temperature=0.0), frozenset(info.eos_ids)
    requests = [Request(tuple(p), 0, 0, limit - len(p), greedy, stop_ids) for p in prompts]
    bar = tqdm(engine.run(requests), total=len(requests), desc=f"{name} answers", unit="prompt", file=sys.stderr)
    results = dict(bar)
    del engine  # with its own layout of the weights, before others are loaded
    sums = np.zeros((len(held_out), 2))
    if scored:
        compared = None if teacher is None else load_weights(teacher)
        found = _reference_sums((config, weights), compared, references, tokenizer.real_vocab, settings.batch_size)
        sums = np.zeros((len(held_out), found.shape[1]))
        sums[scored] = found
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
                "nll": sums[i, 1] / sums[i, 0] if judged else None,
            }
        )
    correct = sum(bool(answer["correct"]) for answer in answers)
    tokens, *totals = (float(total) for total in sums.sum(axis=0))
    nll, kl, agreement, *_ = [total / tokens if tokens else None for total in totals] + [None] * 2
    scores = {
        "exact_match": correct / len(scored) if scored else None,
        "nll": nll,
        "kl": kl,
        "agreement": agreement,
        "count": len(answers),
        "correct": correct,
        "tokens": int(tokens),
    }
    head = {"schema": SCHEMA_VERSION, "model": name, "digest": info.digest, "source": settings.source}
    write_json(out, head | scores | {"answers": answers})
    if not scored:
        return f"{name}: {len(answers)} answers, no reference to score them by"
    far = "" if kl is None else f", KL {kl:.4f} from the teacher"
    return f"{name}: exact match {scores['exact_match']:.1%} of {len(scored)}, NLL {nll:.4f} nats a token{far}"


def _comparable(params: Path, teacher: Path) -> bool:
    """Whether the teacher's tokens are the model's: a distribution over other ids does not compare."""
    return compare(teacher, params)["objectives"]["logits"]["open"]


def _references(tokenizer: Tokenizer, rows: Sequence[Conversation], template: Template) -> list[Reference]:
    """Ids of each prompt with its reference, and what of them is the reference."""
    whole = [[*row.messages, {"role": "assistant", "content": row.reference}] for row in rows]
    return list(examples_tokens(tokenizer, whole, template))


def _reference_sums(
    model: Weights, teacher: Weights | None, references: Sequence[Reference], real: int, batch_size: int
) -> np.ndarray:
    """Sums over each row's reference tokens: their number, NLL, and with a teacher KL(teacher ‖ model) and how often
    both find the same token likeliest. Nats; vocabulary rows behind `real` have no mass."""

    def logits_of(side: Weights, hidden: jax.Array) -> jax.Array:
        return decoder.logits(*side, hidden)[None, :, :real]

    @jax.jit
    def score(weights: list[decoder.Params], tokens: jax.Array, mask: jax.Array) -> jax.Array:
        sides = list(zip(configs, weights, strict=True))

        def row(part: tuple[list[jax.Array], jax.Array, jax.Array]) -> jax.Array:
            hidden, targets, mask = part
            own, *others = (logits_of(side, h) for side, h in zip(sides, hidden, strict=True))
            sums = [jnp.sum(mask), token_sums(own, targets[None], mask[None]).nll]
            for other in others:
                apart = forward_kl(log_probs(other, 1.0, real), log_probs(own, 1.0, real))
                same = other.argmax(-1) == own.argmax(-1)
                sums += [masked_sum(values, mask[None])[0] for values in (apart, same.astype(mask.dtype))]
            return jnp.stack(sums)

        # Padding is behind, where nobody looks; one row's scores are held at a time.
        hidden = [decoder.forward(*side, tokens[:, :-1]) for side in sides]
        return jax.lax.map(row, (hidden, tokens[:, 1:], mask[:, 1:]))

    sides = [model, *([] if teacher is None else [teacher])]
    configs, params = [config for config, _ in sides], [weights for _, weights in sides]
    length, sums = -(-max(len(ids) for ids, _ in references) // 8) * 8 + 1, []
    starts = range(0, len(references), batch_size)
    for start in tqdm(starts, desc="reference likelihood", unit="batch", file=sys.stderr):
        part = references[start : start + batch_size]
        tokens, mask = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.float32)
        for i, (ids, learned) in enumerate(part):
            tokens[i, : len(ids)], mask[i, : len(ids)] = ids, learned
        sums.append(np.asarray(score(params, tokens, mask))[: len(part)])
    return np.concatenate(sums)
