"""The engine decodes models whose caches are not plain: rings, latents, LongRoPE's choice, experts."""

import numpy as np
import pytest
from golden_models import LENGTH, golden, load, run
from golden_models import case as golden_case

from distill.generation.engine import Engine, Request
from distill.generation.sampling import Draw


@pytest.mark.parametrize("name", ["gemma3_text", "phi3_longrope", "deepseek_v2_lite"])
def test_greedy_answers_are_the_likeliest_tokens_of_the_forward_pass(name: str) -> None:
    """Prompts shorter and longer than a window; answers go beyond windows and original contexts."""
    config, params = load(name)
    tokens = golden(name)["input_ids"]
    prompts = [tuple(tokens[row, :length].tolist()) for row, length in ((0, 5), (1, 40), (0, 29))]
    engine = Engine(config, params, slots=2, max_length=LENGTH, real_vocab=config.vocab_size)
    asked = [Request(p, seed=0, sample=0, max_tokens=LENGTH - len(p), draw=Draw(temperature=0.0)) for p in prompts]
    results = dict(engine.run(asked))
    plain = golden_case(golden(name), "plain")
    for i in (0, 2), (1, 1):
        whole = np.array([[*prompts[j], *results[j].tokens] for j in i], np.int32)
        case = type(plain)(whole, plain.segments, plain.positions, plain.logits, plain.real)
        logits = np.asarray(run(config, params, case))
        for row, j in enumerate(i):
            start = len(prompts[j])
            scores = logits[row, start - 1 : -1]
            picked = np.take_along_axis(scores, whole[row, start:, None], axis=-1)[:, 0]
            assert (picked >= scores.max(axis=-1) - 1e-4).all()  # the likeliest, or even with it up to rounding
