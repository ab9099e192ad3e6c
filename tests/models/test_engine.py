"""The engine decodes models whose caches are not plain: rings, latents, LongRoPE's choice, experts."""

from dataclasses import replace

import numpy as np
import pytest
from golden_models import LENGTH, case, golden, load, run

from distill.generation.engine import Engine
from distill.generation.requests import Request
from distill.generation.sampling import Draw

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["gemma3_text", "phi3_longrope", "deepseek_v2_lite"])
def test_greedy_answers_are_the_likeliest_tokens_of_the_forward_pass(name: str) -> None:
    """Prompts are longer than a window, and answers go beyond the original context."""
    config, params = load(name)
    tokens = golden(name)["input_ids"]
    prompts = [tuple(tokens[row, :length].tolist()) for row, length in enumerate((40, 33))]
    engine = Engine(config, params, slots=2, max_length=LENGTH, real_vocab=config.vocab_size)
    asked = [Request(p, seed=0, sample=0, max_tokens=LENGTH - len(p), draw=Draw(temperature=0.0)) for p in prompts]
    results = dict(engine.run(asked))
    whole = np.array([[*prompt, *results[i].tokens] for i, prompt in enumerate(prompts)], np.int32)
    logits = np.asarray(run(config, params, replace(case(golden(name), "plain"), tokens=whole)))
    for i, prompt in enumerate(prompts):
        scores, tokens = logits[i, len(prompt) - 1 : -1], whole[i, len(prompt) :]
        picked = np.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
        assert (picked >= scores.max(axis=-1) - 1e-4).all()  # the likeliest, or even with it up to rounding
