"""A sample is what the model says, and does not depend on who else is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny_config

from distill.errors import DistillError
from distill.generation.engine import Engine, Request, Result
from distill.generation.sampling import Draw
from distill.generation.seeds import request_seed
from distill.models import decoder
from distill.models.families import config_from_hf

CONFIG = config_from_hf(tiny_config())
PARAMS = decoder.init(CONFIG, jax.random.key(0))
PARAMS["embed"] = PARAMS["embed"] * 30  # tied: a distribution with some contrast
STOP = frozenset((9, 16))
DRAWS = (
    Draw(),
    Draw(temperature=0.7, top_k=9, top_p=0.9),
    Draw(temperature=0.0),
    Draw(top_p=0.8),
    Draw(temperature=1.5, min_p=0.1),
)


def engine(slots: int = 8, max_length: int = 64, params: decoder.Params = PARAMS) -> Engine:
    return Engine(CONFIG, params, slots=slots, max_length=max_length, real_vocab=38)


def requests(count: int, samples: int = 2, draw: Draw | None = None) -> list[Request]:
    """Prompts of 2 to 29 tokens; without `draw`, every prompt is sampled in another way."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(8, 38, rng.integers(2, 30)).tolist()) for _ in range(count)]
    limits = rng.integers(3, 30, count).tolist()
    return [
        Request(prompt, request_seed(0, str(i)), sample, limits[i], draw or DRAWS[i % len(DRAWS)], STOP)
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


def test_order_and_neighbours_change_no_bit(answered) -> None:
    asked, whole = answered
    order = np.random.default_rng(1).permutation(len(asked))
    assert run([asked[i] for i in order]) == [whole[i] for i in order]
    shared = engine()
    assert [next(shared.run([asked[i]]))[1] for i in range(10)] == whole[:10]


def test_more_samples_leave_the_first_ones_as_they_were() -> None:
    asked = requests(12, samples=4)
    two = [request for request in asked if request.sample < 2]
    results = {(r.seed, r.sample): result for r, result in zip(asked, run(asked), strict=True)}
    assert run(two) == [results[(r.seed, r.sample)] for r in two]


def test_samples_of_a_prompt_differ() -> None:
    results = run([Request((9, 10, 11), 5, sample, 20, Draw(), STOP) for sample in range(8)])
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
    asked = requests(12, samples=1, draw=Draw(temperature=0.0))
    for request, result in zip(asked, run(asked), strict=True):
        assert scores(request, result).argmax(-1).tolist() == result.tokens


def test_logprobs_are_those_of_the_untempered_model() -> None:
    asked = requests(12, samples=1, draw=Draw(temperature=0.5))
    results = run(asked)
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


def test_a_cancelled_request_frees_its_slot_and_leaves_the_others_alone() -> None:
    asked = [Request((9 + i, 10, 11), i, 0, 30) for i in range(4)]  # nothing stops them before their length
    whole, shared = run(asked), engine(slots=2)
    names = [shared.submit(request) for request in asked]
    shared.step()
    assert len(shared.running) == len(shared.waiting) == 2
    shared.cancel(names[0])  # it runs
    shared.cancel(names[3])  # it waits
    assert len(shared.free) == len(shared.running) == len(shared.waiting) == 1
    ended = {}
    while shared.running or shared.waiting:
        ended |= {name: result for name, result in shared.step() if result.finish_reason is not None}
    assert ended == {names[1]: whole[1], names[2]: whole[2]}
    assert sorted(shared.free) == [0, 1]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DistillError, match="max_target_length is 512, the model's context is 256"):
        engine(max_length=512)
    for prompt, tokens in (((), 5), ((9,) * 60, 5), ((9,), 0)):
        with pytest.raises(DistillError, match="do not fit 64 positions"):
            engine().submit(Request(prompt, 0, 0, tokens))


def test_damaged_weights_are_named_rather_than_sampled() -> None:
    broken = {**PARAMS, "norm": {"weight": PARAMS["norm"]["weight"] * jnp.nan}}
    with pytest.raises(DistillError, match="NaN"):
        run(requests(1), params=broken)
