"""A sample is what the model says, and does not depend on who else is asked."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_models import tiny_config

from distill.checkpoints.store import flat, nest
from distill.errors import DistillError
from distill.generation import engine as engine_module
from distill.generation.engine import Engine
from distill.generation.programs import STEPS, STOPS, drawn_as, going
from distill.generation.requests import Request, Result
from distill.generation.sampling import Draw
from distill.generation.seeds import request_seed
from distill.models import decoder
from distill.models.families import config_from_hf
from distill.native import weights as native_weights
from distill.parallel.mesh import make_mesh, weight_sharding

CONFIG = config_from_hf(tiny_config(max_position_embeddings=512))
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
HOT = Draw(temperature=3.0)  # hardly a token comes twice


def engine(
    slots: int = 8,
    max_length: int = 64,
    params: decoder.Params = PARAMS,
    top: int = 0,
    sampled: int = 0,
    mesh: Mesh | None = None,
) -> Engine:
    return Engine(
        CONFIG, params, slots=slots, max_length=max_length, real_vocab=38, top=top, sampled=sampled, mesh=mesh
    )


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
    assert_only_its_own(*answered)


def assert_only_its_own(asked: list[Request], whole: list[Result]) -> None:
    """Asked in another order, and each one alone."""
    order = np.random.default_rng(1).permutation(len(asked))
    assert run([asked[i] for i in order]) == [whole[i] for i in order]
    shared = engine()
    assert [next(shared.run([asked[i]]))[1] for i in range(10)] == whole[:10]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_without_the_kernels_in_c_it_says_the_same(answered, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bits of a probability, but for a draw that these decide; and of its own it changes no bit either."""
    asked, with_them = answered
    monkeypatch.setattr(native_weights, "kernels", lambda: None)
    without = run(asked)
    same = [(a, b) for a, b in zip(without, with_them, strict=True) if a.tokens == b.tokens]
    assert len(same) > 0.9 * len(asked)
    assert all(np.allclose(a.logprobs, b.logprobs, atol=1e-4) for a, b in same)
    assert any(a.logprobs != b.logprobs for a, b in same)
    assert_only_its_own(asked, without)


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


def test_a_slot_stands_idle_behind_the_end_of_its_sample() -> None:
    """Whether a stop id or the length ends it; nothing is written to the caches from there on."""
    (free,) = run([Request((9, 10, 11), 1, 0, 30, HOT)])
    at = next(i for i in range(2, STEPS) if free.tokens[i] not in free.tokens[:i])
    stop = free.tokens[at]
    asked = [
        Request((9, 10, 11), 1, 0, 30, HOT),
        Request((9, 10, 11), 1, 0, at + 1, HOT),
        Request((9, 10, 11), 1, 0, 30, HOT, stop_ids=frozenset((stop,))),
        Request((9, 10, 11), 1, 0, 30, HOT, stop_ids=frozenset((stop, *range(100, 99 + STOPS)))),
    ]
    shared = engine()
    names = [shared.submit(request) for request in asked]
    shared.step()
    told = dict(shared.step())
    assert [told[name].tokens for name in names] == [free.tokens[: 1 + STEPS]] + [free.tokens[: at + 1]] * 3
    newest, lane = [3 + STEPS, *[3 + at] * 3, 0], shared.lanes[0]
    assert lane.state["position"].tolist()[:5] == newest
    keys = np.asarray(lane.caches[0]["k"][0])[:5, 0]  # of the newest token there are none yet
    assert [int(np.any(row != 0, axis=-1).sum()) for row in keys] == newest


def test_an_idle_slot_is_drawn_in_the_way_that_needs_least() -> None:
    """What its last sample asked for would have all rows searched."""
    asked = [Request((9, 10, 11), 1, 0, 30), Request((9, 10, 11), 1, 0, 3, Draw(0.7, 9, 0.9, 0.1))]
    shared = engine()
    for request in asked:
        shared.submit(request)
    shared.step()
    shared.step()
    state = shared.lanes[0].state
    live = going(state, state["token"], state["position"])
    assert live.tolist() == [True] + [False] * 7
    assert state["draw"].top_k.tolist() == [0, 9] + [0] * 6
    found = drawn_as(state["draw"], live)
    assert all(np.array_equal(column, [value] * 8) for column, value in zip(found, Draw(), strict=True))


def test_more_stop_ids_than_the_device_knows() -> None:
    """The smallest are known to it; any of the others, be it no token at all, ends a sample all the same."""
    (free,) = run([Request((9, 10, 11), 1, 0, 30, HOT)])
    others = [token for token in range(38) if token not in free.tokens]
    last = max(range(30), key=lambda i: (free.tokens[i] > others[STOPS - 1]) * i)  # behind STOPS others in their order
    assert last > STEPS
    for known in (others[:STOPS], range(1000, 1000 + STOPS), (-(2**40), -1, 2**31, 2**40)):
        stops = frozenset((free.tokens[last], *known))
        (result,) = run([Request((9, 10, 11), 1, 0, 30, HOT, stop_ids=stops)])
        assert result.tokens == free.tokens[: free.tokens.index(free.tokens[last]) + 1]
        assert result.finish_reason == "stop"


def test_a_cancelled_request_frees_its_slot_and_leaves_the_others_alone() -> None:
    asked = [Request((9 + i, 10, 11), i, 0, 30) for i in range(4)]  # nothing stops them before their length
    whole, shared = run(asked, slots=2), engine(slots=2)
    names = [shared.submit(request) for request in asked]
    shared.step()
    assert shared.running == shared.queued == 2
    shared.cancel(names[0])  # it runs
    shared.cancel(names[3])  # it waits
    assert len(shared.lanes[0].free) == shared.running == len(shared.waiting) == 1
    ended = {}
    while shared.running or shared.waiting:
        ended |= {name: result for name, result in shared.step() if result.finish_reason is not None}
    assert ended == {names[1]: whole[1], names[2]: whole[2]}
    assert sorted(shared.lanes[0].free) == [0, 1]


@pytest.fixture
def two_lanes(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(engine_module, "LANE", 4)
    shared = engine(slots=8)
    assert [lane.slots for lane in shared.lanes] == [4, 4]
    return shared


def test_lanes_answer_as_one_lane_of_their_size(two_lanes: Engine) -> None:
    asked = requests(20)
    answered = dict(two_lanes.run(asked))
    assert [answered[i] for i in range(len(asked))] == run(asked, slots=4)


def test_a_request_that_is_cancelled_while_its_lane_decodes(two_lanes: Engine) -> None:
    """All slots of both lanes are taken; one is freed in a lane that is under way, and a waiting request gets it."""
    asked = [Request((9 + i, 10, 11), i, 0, 30) for i in range(9)]
    names = [two_lanes.submit(request) for request in asked]
    two_lanes.step()
    assert (two_lanes.running, two_lanes.queued) == (8, 1)
    two_lanes.cancel(names[5])
    ended = {}
    while two_lanes.running or two_lanes.waiting:
        ended |= {name: result for name, result in two_lanes.step() if result.finish_reason is not None}
    whole = run(asked, slots=4)
    assert ended == {name: whole[i] for i, name in enumerate(names) if i != 5}


def test_samples_of_one_prompt_are_shared_by_both_lanes(two_lanes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read, prefill = [], engine_module.prefill
    monkeypatch.setattr(engine_module, "prefill", lambda *args: read.append(args[4].shape) or prefill(*args))
    asked = [Request((9, 10, 11), 0, sample, 20) for sample in range(8)]
    for request in asked:
        two_lanes.submit(request)
    two_lanes.step()
    assert [len(lane.running) for lane in two_lanes.lanes] == [4, 4]
    assert read == [(8, 16)]


def test_a_prompt_that_is_asked_again_and_again_keeps_no_other_waiting() -> None:
    shared, popular, ended = engine(slots=1), Request((9, 10, 11), 0, 0, 3), []
    names = [shared.submit(popular) for _ in range(3)]
    other = shared.submit(Request((12, 13), 1, 0, 3))
    while len(ended) < 6:
        done = [name for name, result in shared.step() if result.finish_reason is not None]
        ended += done
        for _ in done:
            shared.submit(popular)
    assert ended[:4] == [*names, other]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DistillError, match="max_target_length is 1024, the model's context is 512"):
        engine(max_length=1024)
    for prompt, tokens in (((), 5), ((9,) * 60, 5), ((9,), 0)):
        with pytest.raises(DistillError, match="do not fit 64 positions"):
            engine().submit(Request(prompt, 0, 0, tokens))


def test_weights_that_are_the_engines_own_are_not_kept_twice() -> None:
    own = jax.tree.map(jnp.array, PARAMS)
    given = Engine(CONFIG, own, slots=8, max_length=64, real_vocab=38, own=True)
    asked = requests(4)
    assert [result for _, result in sorted(given.run(asked), key=lambda item: item[0])] == run(asked)
    kept = {id(leaf) for leaf in jax.tree.leaves(given.params)}
    assert all(leaf.is_deleted() or id(leaf) in kept for leaf in jax.tree.leaves(own))


def test_damaged_weights_are_named_rather_than_sampled() -> None:
    broken = {**PARAMS, "norm": {"weight": PARAMS["norm"]["weight"] * jnp.nan}}
    with pytest.raises(DistillError, match="NaN"):
        run(requests(1), params=broken)


@pytest.mark.slow
def test_two_hundred_thousand_tokens_in_another_order_with_other_neighbours() -> None:
    """Rows of all lengths, so that the caches grow and shrink at other times in each run."""
    rng = np.random.default_rng(2)
    asked = [
        Request(tuple(rng.integers(8, 38, rng.integers(2, 60)).tolist()), prompt, sample, int(rng.integers(20, 180)))
        for prompt in range(500)
        for sample in range(4)
    ]
    order = rng.permutation(len(asked))
    whole = run(asked, slots=64, max_length=240)  # two lanes
    assert sum(len(result.tokens) for result in whole) >= 190_000
    others = [Request((int(token),), 7, 0, 100) for token in rng.integers(8, 38, 200)]
    shuffled = run([*(asked[i] for i in order), *others], slots=64, max_length=240)
    assert shuffled[: len(asked)] == [whole[i] for i in order]


def test_a_long_prompt_is_read_in_pieces_while_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 32)
    long = Request(tuple(range(8, 38)) * 4, 3, 0, 8)  # 120 tokens: four pieces
    shared = engine(max_length=160)
    first = shared.submit(Request((9, 10), 1, 0, 100))
    shared.step()
    shared.step()
    name = shared.submit(long)
    moved = [dict(shared.step()) for _ in range(5)]
    assert [first in step for step in moved] == [True, True, True, False, True]
    assert [name in step for step in moved] == [False, False, False, True, True]  # alone with its first token
    ids = [*long.prompt, *moved[3][name].tokens]
    logits = np.asarray(whole(jnp.asarray([ids])))[0, len(long.prompt) - 1 : -1, :38]
    logprobs = np.asarray(jax.nn.log_softmax(logits))[np.arange(8), moved[3][name].tokens]
    np.testing.assert_allclose(moved[3][name].logprobs, logprobs, atol=1e-4)


def test_first_tokens_are_told_before_the_decode_steps_behind_them_end() -> None:
    asked = [Request((9 + i, 10, 11), i, 0, length) for i, length in enumerate((30, 1))]
    shared, whole = engine(), run(asked)
    names = [shared.submit(request) for request in asked]
    told = {name: (list(result.tokens), result.finish_reason) for name, result in shared.step()}
    assert told == {names[0]: (whole[0].tokens[:1], None), names[1]: (whole[1].tokens, "length")}
    assert len(shared.lanes[0].free) == 7  # a request of one token has left its slot, though decode steps are under way
    rest = {name: list(result.tokens) for name, result in shared.step()}
    assert rest == {names[0]: whole[0].tokens[: 1 + STEPS]}


def test_what_comes_while_prompts_are_read_decodes_with_them(two_lanes: Engine) -> None:
    """Of eight requests one is there at first; the others come, and one goes, while its prompt is read."""
    asked = [Request((9 + i, 10, 11), i, 0, 20) for i in range(8)]
    names = [two_lanes.submit(asked[0])]

    def listen() -> None:
        if len(names) == 1:
            names.extend(map(two_lanes.submit, asked[1:]))
            two_lanes.cancel(names[0])

    two_lanes.step(listen)
    assert (two_lanes.running, two_lanes.queued) == (7, 0)
    ended = {}
    while two_lanes.running:
        ended |= {name: result for name, result in two_lanes.step(listen) if result.finish_reason is not None}
    assert ended == dict(zip(names[1:], run(asked, slots=4)[1:], strict=True))


def test_a_long_prompt_that_is_cancelled_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 32)
    shared = engine(max_length=160)
    name = shared.submit(Request(tuple(range(8, 38)) * 4, 3, 0, 8))
    shared.step()
    shared.cancel(name)
    assert shared.step() == []
    other = Request((9, 10), 1, 0, 9)
    assert next(shared.run([other]))[1] == run([other], max_length=160)[0]


def test_a_prompt_is_read_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    prefill = engine_module.prefill
    monkeypatch.setattr(engine_module, "prefill", lambda *args: read.append(args[4].shape) or prefill(*args))
    run([Request((9 + p, 10, 11), p, sample, 12) for p in range(3) for sample in range(7)], slots=2)
    assert read == [(8, 16)]  # three prompts of one length, though two samples run at a time


def test_the_likeliest_tokens_are_told_with_their_logprobs() -> None:
    asked = requests(12, samples=1)
    results = run(asked, top=5)
    assert [r.tokens for r in results] == [r.tokens for r in run(asked)]
    for request, result in zip(asked, results, strict=True):
        logits = scores(request, result)
        best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
        top_ids, top_logprobs = (np.stack(result.told[f"top_{what}"]) for what in ("ids", "logprobs"))
        np.testing.assert_array_equal(np.sort(top_ids), np.sort(best))
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        np.testing.assert_allclose(top_logprobs, np.take_along_axis(logprobs, top_ids, axis=-1), atol=1e-4)
        np.testing.assert_allclose(result.told["logsumexp"], jax.nn.logsumexp(logits, axis=-1), rtol=1e-5)
        assert (np.diff(top_logprobs, axis=-1) <= 0).all()


@pytest.mark.slow
def test_draws_are_told_beside_the_token_that_was_drawn() -> None:
    """Sixteen a position from the model's own distribution, whatever the token was drawn by; the same ones again in
    another slot, with other neighbours."""
    asked = requests(6, samples=2, draw=Draw(temperature=0.7, top_k=9, top_p=0.9))
    results = run(asked, sampled=16)
    assert [r.tokens for r in results] == [r.tokens for r in run(asked)]
    for request, result in zip(asked, results, strict=True):
        ids, logprobs = (np.stack(result.told[f"sampled_{what}"]) for what in ("ids", "logprobs"))
        wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(scores(request, result))), ids, axis=-1)
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)
    again = run(asked[::-1], slots=3, sampled=16)[::-1]
    for one, other in zip(results, again, strict=True):
        np.testing.assert_array_equal(one.told["sampled_ids"], other.told["sampled_ids"])
    assert len({np.stack(result.told["sampled_ids"]).tobytes() for result in results}) == len(results)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"tensor": 2}, {"data": 4, "tensor": 2}])
def test_over_a_mesh_it_says_what_one_device_says(shape: dict[str, int]) -> None:
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())])
    axes = decoder.weight_axes(CONFIG)
    spread = nest(
        {path: jax.device_put(w, weight_sharding(mesh, axes[path], w.shape)) for path, w in flat(PARAMS).items()}
    )
    asked = requests(12, samples=1, draw=Draw(temperature=0.0))
    results, alone = run(asked, params=spread, mesh=mesh), run(asked)
    assert [result.tokens for result in results] == [result.tokens for result in alone]
    for result, one in zip(results, alone, strict=True):
        np.testing.assert_allclose(result.logprobs, one.logprobs, atol=1e-4)
