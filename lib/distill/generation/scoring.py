"""The teacher's logits for text that is there already: given completions, original answers, published sets."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from distill.checkpoints.info import read_info
from distill.checkpoints.store import load_weights
from distill.config.training import Part
from distill.data.conversations import training_conversations
from distill.data.schema import CompletionsMetadata, opened_completions, write_completions
from distill.data.topk import LOGSUMEXP, Told, as_text, packed
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.generation.sampling import fine_peaks, likeliest_of, many_uniforms, sampled_of
from distill.generation.seeds import request_seed
from distill.models import decoder
from distill.models.config import ModelConfig
from distill.models.int8 import quantize_weights
from distill.text.chat import Messages, Template, examples_tokens, prompt_id
from distill.text.tokenizer import load_tokenizer

ROWS = 8  # completions that are read together
BUCKET = 128  # tokens that a row's length is rounded up to
SCORES = 1 << 22  # logits that are held at once: 16 MB in float32


@dataclass(frozen=True)
class Given:
    """A completion to be scored."""

    prompt_id: str
    sample: int
    messages: Messages
    prompt: list[int]
    completion: list[int]
    reference: str | None = None


class Scorer:
    """A teacher that reads whole completions: what it says at each token is what it would have said writing them."""

    def __init__(self, params: Path, *, max_length: int | None = None, int8: bool = False):
        self.info = read_info(params)
        config, weights = load_weights(params)
        self.config = config if max_length is None else config.reaching(max_length)
        self.weights = quantize_weights(weights) if int8 else weights

    def told(self, rows: Sequence[Given], told: Told, seed: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(index, columns of `Choice` for each token of its completion), short rows first."""
        for part, arrays in self._batches(rows):
            seeds = [request_seed(seed, rows[i].prompt_id) for i in part] + [0] * (ROWS - len(part))
            halves = np.asarray([(s >> 32, s & 0xFFFFFFFF) for s in seeds], np.uint32)
            samples = np.asarray([rows[i].sample for i in part] + [0] * (ROWS - len(part)), np.int32)
            out = _tell(self.config, (told.top, told.sampled, told.vocabulary), self.weights, *arrays, halves, samples)
            yield from self._cut(rows, part, out)

    def at(
        self, rows: Sequence[Given], ids: Sequence[Int[np.ndarray, "T k"]], vocabulary: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(index, {logsumexp [T], logprobs [T k] of `ids`, best [T k], the largest ones})."""
        k = ids[0].shape[1]
        for part, (tokens, lengths) in self._batches(rows):
            asked = np.zeros((*tokens.shape, k), np.int32)
            for row, i in enumerate(part):
                first = len(rows[i].prompt) - 1
                asked[row, first : first + len(ids[i])] = ids[i]
            yield from self._cut(rows, part, _ask(self.config, vocabulary, self.weights, tokens, lengths, asked))

    def _batches(self, rows: Sequence[Given]) -> Iterator[tuple[list[int], tuple[np.ndarray, np.ndarray]]]:
        """Indices of up to ROWS rows, and their inputs, right-padded; a bucket's shape is compiled once."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].completion))
        for first in range(0, len(order), ROWS):
            part = order[first : first + ROWS]
            whole = [[*rows[i].prompt, *rows[i].completion] for i in part]
            tokens = np.zeros((ROWS, -(-max(map(len, whole)) // BUCKET) * BUCKET), np.int32)
            for row, ids in enumerate(whole):
                tokens[row, : len(ids)] = ids
            yield part, (tokens, np.asarray([len(ids) for ids in whole] + [0] * (ROWS - len(part)), np.int32))

    def _cut(
        self, rows: Sequence[Given], part: list[int], out: dict[str, jax.Array]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        host = {name: np.asarray(value) for name, value in out.items()}
        for row, i in enumerate(part):
            first = len(rows[i].prompt) - 1  # the last token of the prompt tells of the first one behind it
            place = slice(first, first + len(rows[i].completion))
            found = {name: value[row, place] for name, value in host.items()}
            if np.isnan(found[LOGSUMEXP]).any():
                raise DistillError(
                    f"the teacher gives NaN for prompt {rows[i].prompt_id}: its weights are damaged, or their dtype "
                    "is too narrow"
                )
            yield i, found


@partial(jax.jit, static_argnums=(0, 1))
def _tell(config: ModelConfig, told: tuple[int, int, int], weights, tokens, lengths, seeds, samples):
    """What is asked for at each position of [B, T], of the token behind it."""
    top, sampled, vocabulary = told

    def one(logits: Float[Array, "B V"], targets: Int[Array, "B"], position: Int[Array, ""]) -> dict[str, Array]:
        logits = jnp.where(jnp.arange(logits.shape[1])[None] < vocabulary, logits, -jnp.inf)
        total = jax.nn.logsumexp(logits, axis=-1)
        own = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0] - total
        out = {LOGSUMEXP: total, "logprobs": own}
        if top:
            scores, out["top_ids"] = likeliest_of(logits, fine_peaks(logits), top)
            out["top_logprobs"] = scores - total[:, None]
        if sampled:
            u = many_uniforms(seeds, samples, jnp.broadcast_to(position + 1, samples.shape), sampled)
            out["sampled_logprobs"], out["sampled_ids"] = sampled_of(logits, u, vocabulary)
        return out

    return _over_positions(config, weights, tokens, lengths, one)


@partial(jax.jit, static_argnums=(0, 1))
def _ask(config: ModelConfig, vocabulary: int, weights, tokens, lengths, ids):
    """Log-probabilities of `ids` [B, T, k], and the k largest ones."""

    def one(logits: Float[Array, "B V"], targets: Int[Array, "B"], position: Int[Array, ""]) -> dict[str, Array]:
        logits = jnp.where(jnp.arange(logits.shape[1])[None] < vocabulary, logits, -jnp.inf)
        total = jax.nn.logsumexp(logits, axis=-1)
        here = jax.lax.dynamic_index_in_dim(ids, position, 1, keepdims=False)
        best = likeliest_of(logits, fine_peaks(logits), min(ids.shape[2], vocabulary))[0] - total[:, None]
        found = jnp.take_along_axis(logits, here, axis=1) - total[:, None]
        return {LOGSUMEXP: total, "logprobs": found, "best": best}

    return _over_positions(config, weights, tokens, lengths, one)


def _over_positions(config: ModelConfig, weights, tokens, lengths, one):
    """`one` for each position of all rows, [B, T, ...]; the logits of a few positions are held at a time."""
    rows, length = tokens.shape
    inside = jnp.arange(length)[None] < lengths[:, None]
    hidden = decoder.forward(config, weights, tokens, inside.astype(jnp.int32))
    targets = jnp.roll(tokens, -1, axis=1)
    batch = max(1, min(length, SCORES // (rows * config.vocab_size)))

    def step(part: tuple[Array, Array, Array]) -> dict[str, Array]:
        h, target, position = part
        return one(decoder.logits(config, weights, h), target, position)

    parts = jnp.swapaxes(hidden, 0, 1), jnp.swapaxes(targets, 0, 1), jnp.arange(length)
    return {name: jnp.swapaxes(x, 0, 1) for name, x in jax.lax.map(step, parts, batch_size=batch).items()}


def score_logits(
    params: Path, out: Path, widths: dict[str, int], seed: int, template: Template, max_length: int, *,
    completions: Path | None = None, prompts: Path | None = None, part: Part | None = None,
) -> str:  # fmt: skip
    """Write completions with the teacher's logits: of a batch's file, of a batch's original answers, or of a dataset.

    Text whose tokens are not known is tokenized with the teacher's tokenizer; what is longer than its context is
    left out. Draws are those that the engine would have told with the same seed.
    """
    scorer = Scorer(params, max_length=max_length)
    info = scorer.info
    told = Told(**widths, vocabulary=info.real_vocab)
    if (most := widths["top"]) > info.real_vocab:
        raise DistillError(
            f"{most} logits a token are asked for, the teacher has {info.real_vocab}: lower the stages' k"
        )
    given = list(_given(params, template, completions, prompts, part))
    rows = [row for row in given if len(row.prompt) + len(row.completion) <= info.architecture.max_positions]
    done: dict[int, dict[str, Any]] = {}
    found = scorer.told(rows, told, seed)
    for i, columns in tqdm(found, total=len(rows), desc=out.stem, unit="completion", file=sys.stderr):
        done[i] = _written(rows[i], columns, told)
    metadata = CompletionsMetadata(
        info.digest, info.tokenizer_hash, {"max_target_length": max_length}, seed, logits=told
    )
    write_completions(out, [done[i] for i in range(len(rows))], metadata)
    tokens = sum(len(row.completion) for row in rows)
    left_out = f", {len(given) - len(rows)} over the teacher's context left out" if len(given) > len(rows) else ""
    return f"{out.stem}: {len(rows):,} completions of {tokens:,} tokens{left_out}"


def _written(row: Given, columns: dict[str, np.ndarray], told: Told) -> dict[str, Any]:
    """A row of the completions' schema with its logits."""
    return {
        "prompt_id": row.prompt_id,
        "sample": row.sample,
        "prompt": row.messages[:-1],
        "completion": row.messages[-1:],
        "messages": row.messages,
        "prompt_token_ids": row.prompt,
        "completion_token_ids": row.completion,
        "logprobs": columns["logprobs"].tolist(),
        "finish_reason": "stop",
        "reference": row.reference,
        "logits": as_text(packed({name: columns[name] for name in told.columns}, told.vocabulary)),
    }


def _given(
    params: Path, template: Template, completions: Path | None, prompts: Path | None, part: Part | None
) -> Iterator[Given]:
    """What is to be scored, in the order of its source."""
    tokenizer = load_tokenizer(params / "tokenizer")

    def tokenized(conversations: Iterable[Messages]) -> Iterator[tuple[list[int], list[int]]]:
        for ids, mask in examples_tokens(tokenizer, list(conversations), template):
            start = mask.index(1)
            yield ids[:start], ids[start:]

    if completions is not None:
        with opened_completions(completions) as (file, _):
            rows = file.read(
                ["prompt_id", "sample", "messages", "prompt_token_ids", "completion_token_ids", "reference"]
            ).to_pylist()
        unknown = [row for row in rows if row["completion_token_ids"] is None]
        for row, (prompt, completion) in zip(unknown, tokenized(r["messages"] for r in unknown), strict=True):
            row["prompt_token_ids"], row["completion_token_ids"] = prompt, completion
        for row in rows:
            ids = row["prompt_token_ids"], row["completion_token_ids"]
            if ids[1]:
                yield Given(row["prompt_id"], row["sample"], row["messages"], *ids, row["reference"])
        return
    if prompts is not None:
        answered = [row for row in read_jsonl(prompts) if row["original"] is not None]
        whole = [[*row["messages"], {"role": "assistant", "content": row["original"]}] for row in answered]
    else:
        whole = [messages for messages in training_conversations((), part) if _is_answered(messages)]
    seen: dict[str, int] = {}
    for messages, ids in zip(whole, tokenized(whole), strict=True):
        name = prompt_id(messages[:-1])
        seen[name] = seen.get(name, -1) + 1
        yield Given(name, seen[name], messages, *ids)


def _is_answered(messages: Messages) -> bool:
    return len(messages) > 1 and messages[-1]["role"] == "assistant" and bool(messages[-1]["content"].strip())
