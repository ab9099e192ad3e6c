"""A sample is what the model says, and does not depend on who else is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny_config

from distill.config import Sampling
from distill.errors import DistillError
from distill.generation.engine import Engine, Request, Result
from distill.generation.sampling import request_seed
from distill.models import decoder
from distill.models.families import config_from_hf

CONFIG = config_from_hf(tiny_config())
PARAMS = decoder.init(CONFIG, jax.random.key(0))
PARAMS["embed"] = PARAMS["embed"] * 30  # tied: a distribution with some contrast
STOP = (7, 20)


def engine(sampling: Sampling | None = None, slots: int = 8, **changes) -> Engine:
    options = {"slots": slots, "max_length": 64, "stop_ids": STOP, "real_vocab": 38} | changes
    return Engine(CONFIG, PARAMS, sampling=sampling or Sampling(), **options)


def requests(count: int, samples: int = 2) -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(8, 38, rng.integers(2, 30)).tolist()) for _ in range(count)]
    limits = rng.integers(3, 30, count).tolist()
    return [
        Request(prompt, request_seed(0, str(i)), sample, limits[i])
        for i, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def run(asked: list[Request], **options) -> list[Result]:
    results = dict(engine(**options).run(asked))
    return [results[i] for i in range(len(asked))]


@pytest.fixture(scope="module")
def answered() -> tuple[list[Request], list[Result]]:
    asked = requests(40)
    return asked, run(asked)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(strategy="nucleus", top_p=0.8),
        Sampling(strategy="composite", top_k=9, top_p=0.9, temperature=0.7),
    ],
    ids=lambda s: s.strategy,
)
def test_order_and_neighbours_change_no_bit(sampling: Sampling) -> None:
    asked = requests(40)
    whole = run(asked, sampling=sampling)
    order = np.random.default_rng(1).permutation(len(asked))
    assert run([asked[i] for i in order], sampling=sampling) == [whole[i] for i in order]
    shared = engine(sampling)
    assert [next(shared.run([asked[i]]))[1] for i in range(6)] == whole[:6]


def test_more_samples_leave_the_first_ones_as_they_were() -> None:
    asked = requests(12, samples=4)
    two = [request for request in asked if request.sample < 2]
    results = {(r.seed, r.sample): result for r, result in zip(asked, run(asked), strict=True)}
    assert run(two) == [results[(r.seed, r.sample)] for r in two]


def test_samples_of_a_prompt_differ() -> None:
    results = run([Request((9, 10, 11), 5, sample, 20) for sample in range(8)])
    assert len({tuple(result.tokens) for result in results}) > 4


def scores(request: Request, result: Result) -> np.ndarray:
    """The uncached model's scores for each token of the result, [tokens, real vocabulary]."""
    ids = [*request.prompt, *result.tokens]
    logits = whole(jnp.asarray([ids + [0] * (64 - len(ids))]))
    return np.asarray(logits)[0, len(request.prompt) - 1 : len(ids) - 1, :38]


@jax.jit
def whole(tokens: jax.Array) -> jax.Array:
    return decoder.logits(CONFIG, PARAMS, decoder.forward(CONFIG, PARAMS, tokens))


def test_greedy_is_the_argmax_of_the_whole_forward_pass() -> None:
    asked = requests(12, samples=1)
    for request, result in zip(asked, run(asked, sampling=Sampling(strategy="greedy")), strict=True):
        assert scores(request, result).argmax(-1).tolist() == result.tokens


def test_logprobs_are_those_of_the_untempered_model() -> None:
    asked = requests(12, samples=1)
    results = run(asked, sampling=Sampling(temperature=0.5))
    for request, result in zip(asked, results, strict=True):
        logprobs = np.asarray(jax.nn.log_softmax(scores(request, result)))
        wanted = logprobs[np.arange(len(result.tokens)), result.tokens]
        np.testing.assert_allclose(result.logprobs, wanted, atol=1e-4)


def test_a_sample_ends_at_any_stop_id_or_at_its_length(answered) -> None:
    for request, result in zip(*answered, strict=True):
        assert len(result.tokens) == len(result.logprobs) <= request.max_tokens
        assert not set(result.tokens[:-1]) & set(STOP)
        assert (result.finish_reason == "stop") == (result.tokens[-1] in STOP)
        assert result.finish_reason == "stop" or len(result.tokens) == request.max_tokens
    ends = {result.tokens[-1] for result in answered[1] if result.finish_reason == "stop"}
    assert ends == set(STOP)


def test_a_target_longer_than_the_context_is_refused() -> None:
    with pytest.raises(DistillError, match="max_target_length is 512, the model's context is 256"):
        engine(max_length=512)


def test_damaged_weights_are_named_rather_than_sampled() -> None:
    broken = {**PARAMS, "norm": {"weight": PARAMS["norm"]["weight"] * jnp.nan}}
    options = {"slots": 2, "max_length": 64, "stop_ids": STOP, "real_vocab": 38, "sampling": Sampling()}
    with pytest.raises(DistillError, match="NaN"):
        list(Engine(CONFIG, broken, **options).run(requests(1)))
