"""What must hold of a gradient, whatever the batch looks like."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_models import QUICKLY
from tiny_training import CONFIG, PARAMS, assert_close, batch, fresh

from distill.config.stages import Stage
from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.models import decoder
from distill.parallel.mesh import make_mesh
from distill.training.losses import chunked_sums, masked_sum, token_sums
from distill.training.objectives import objective_of
from distill.training.optimizer import learning_rate, make_optimizer
from distill.training.state import State, param_shardings
from distill.training.step import gradient as slopes
from distill.training.step import make_step, mean_loss

STAGE = Stage(init="-", steps=10)
compiled = partial(jax.jit, compiler_options=QUICKLY)
plain = compiled(partial(slopes, CONFIG, stage=STAGE))
gradient = compiled(jax.value_and_grad(lambda params, batch: mean_loss(CONFIG, params, batch, STAGE)[0]))


def test_padding_changes_neither_loss_nor_gradient() -> None:
    narrow, wide = gradient(PARAMS, batch([8, 12, 5], 16)), gradient(PARAMS, batch([8, 12, 5], 32))
    assert narrow[0] == pytest.approx(float(wide[0]), abs=1e-6)
    assert_close(narrow[1], wide[1])


def test_packing_changes_neither_loss_nor_gradient() -> None:
    apart, packed = batch([8, 12, 5], 32), batch([25], 32)
    for name in apart:
        packed[name][0] = 0
        packed[name][0, :25] = np.concatenate([apart[name][i, :n] for i, n in enumerate((8, 12, 5))])
    packed["segment_ids"][0, :25] = np.repeat([1, 2, 3], [8, 12, 5])
    left, right = gradient(PARAMS, apart), gradient(PARAMS, packed)
    assert left[0] == pytest.approx(float(right[0]), abs=1e-6)
    assert_close(left[1], right[1])


def test_packed_rows_have_the_loss_and_gradient_of_padded_ones() -> None:
    random, lengths = np.random.default_rng(0), [9, 13, 6, 17, 4, 11, 8]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    mask = np.concatenate([np.arange(n) >= 3 for n in lengths]).astype(np.uint8)
    examples = Examples(random.integers(6, 35, offsets[-1]).astype(np.int32), mask, offsets, {})
    padded, packed = Loader(examples, 7, 0), Loader(examples, 3, 0, 24, packing=True)
    assert packed.rows.per_epoch == 3
    left, right = (gradient(PARAMS, loader.batch(0)) for loader in (padded, packed))
    assert left[0] == pytest.approx(float(right[0]), abs=1e-6)
    assert_close(left[1], right[1])


def test_the_gradient_is_the_same_however_the_batch_is_split() -> None:
    """Rows that teach 1 to 12 tokens: a mean of the parts' means would weigh the short ones too much."""
    data, stage = batch([3, 14, 7, 10], 16), STAGE.model_copy(update={"micro_batch_size": 2})
    split, at_once = compiled(partial(slopes, CONFIG, stage=stage))(PARAMS, data), plain(PARAMS, data)
    assert_close(split[0], at_once[0])
    assert_close(split[1], at_once[1])


def test_what_is_computed_again_changes_nothing() -> None:
    data, stage = batch([8, 12], 16), STAGE.model_copy(update={"remat": "dots"})
    kept, again = compiled(partial(slopes, CONFIG, stage=stage))(PARAMS, data), plain(PARAMS, data)
    assert_close(kept[0], again[0])


@pytest.mark.slow
def test_bfloat16_computes_and_float32_remembers() -> None:
    data, stage = batch([8, 12], 16), STAGE.model_copy(update={"dtype": "bfloat16"})
    found, metrics = compiled(partial(slopes, CONFIG, stage=stage))(PARAMS, data)
    exact, wanted = plain(PARAMS, data)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    assert float(metrics["loss"]) == pytest.approx(float(wanted["loss"]), rel=5e-3)
    assert float(metrics["loss"]) != float(wanted["loss"])
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, found, exact)) / optax.tree.norm(exact)
    assert 0 < float(apart) < 0.03
    # A change far under bfloat16's resolution of the weights is not lost.
    optimizer, mesh = optax.sgd(1e-4), make_mesh(devices=jax.devices()[:1])
    where = State(param_shardings(CONFIG, PARAMS, mesh), optimizer.init(PARAMS))
    state = State(jax.device_put(fresh(), where.params), where.optimizer)
    after, _ = make_step(CONFIG, stage, optimizer, mesh, where)(state, data)
    assert_close(jax.tree.map(lambda a, b: (a - b) / 1e-4, PARAMS, after.params), found, atol=2e-3)


def test_accuracy_is_the_share_of_tokens_that_were_likeliest() -> None:
    data = batch([8, 12], 16)
    logits = decoder.logits(CONFIG, PARAMS, decoder.forward(CONFIG, PARAMS, data["tokens"], data["segment_ids"]))
    right = (logits.argmax(-1) == data["targets"])[data["mask"] > 0].mean()
    _, metrics = mean_loss(CONFIG, PARAMS, data, STAGE)
    assert float(metrics["accuracy"]) == pytest.approx(float(right))


def test_z_loss_is_log_z_squared() -> None:
    logits = jax.random.normal(jax.random.key(0), (2, 3, 40)) * 3
    targets, mask = jnp.zeros((2, 3), jnp.int32), jnp.asarray([[1.0, 1, 0], [0, 1, 1]])
    sums = token_sums(logits, targets, mask, 0.1)
    wanted = 0.1 * (jax.nn.logsumexp(logits, axis=-1) ** 2 * mask).sum()
    assert float(sums.loss - sums.nll) == pytest.approx(float(wanted), rel=1e-5)


def test_eos_is_learned_where_it_is_also_the_pad() -> None:
    """Id 0 ends every answer and fills every row behind it: the mask, not the id, says what counts."""
    data, params = batch([8, 12], 16), PARAMS
    for row, end in enumerate((7, 11)):
        data["targets"][row, end] = 0
    for _ in range(40):
        slope, _ = plain(params, data)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    logits = decoder.logits(CONFIG, params, decoder.forward(CONFIG, params, data["tokens"], data["segment_ids"]))
    assert logits.argmax(-1)[[0, 1], [7, 11]].tolist() == [0, 0]
    padded = plain(params, data)[0]
    for name in ("tokens", "targets"):
        data[name][data["segment_ids"] == 0] = 9  # whatever stands there
    assert_close(plain(params, data)[0], padded, atol=0)


def test_the_mean_is_over_tokens_not_over_rows() -> None:
    both = batch([4, 14], 16)
    short, long = ({name: array[i : i + 1] for name, array in both.items()} for i in (0, 1))
    nll = [float(gradient(PARAMS, part)[0]) for part in (short, long)]
    assert float(gradient(PARAMS, both)[0]) == pytest.approx((2 * nll[0] + 12 * nll[1]) / 14, abs=1e-6)


def test_prompt_tokens_are_not_targets() -> None:
    clean, poisoned = batch([8, 12], 16), batch([8, 12], 16)
    poisoned["targets"][poisoned["mask"] == 0] = 39
    left, right = gradient(PARAMS, clean), gradient(PARAMS, poisoned)
    assert float(left[0]) == float(right[0])
    assert_close(left[1], right[1], atol=0)
    values = jnp.asarray([[1.0, jnp.nan, 3.0]])
    assert [float(v) for v in masked_sum(values, jnp.asarray([[1.0, 0.0, 1.0]]))] == [4.0, 2.0]


def test_nll_is_minus_log_softmax_in_float64() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (2, 3, 40))
    targets = np.random.default_rng(1).integers(0, 40, (2, 3))
    exact = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    wanted = np.take_along_axis(exact, targets[..., None], -1)[..., 0]
    for place in np.ndindex(targets.shape):
        mask = np.zeros(targets.shape, np.float32)
        mask[place] = 1
        assert float(token_sums(logits, targets, mask).nll) == pytest.approx(wanted[place], abs=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_gradient_is_the_slope_of_the_loss(z_loss: float) -> None:
    """Central differences in float64, the norms, the attention and the loss included."""
    data, stage = batch([8, 12], 16), STAGE.model_copy(update={"z_loss": z_loss})
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), PARAMS)
        along = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape, jnp.float64), params)

        def loss(t: jax.Array) -> jax.Array:
            moved = jax.tree.map(lambda p, d: p + t * d, params, along)
            return mean_loss(CONFIG, moved, data, stage)[0]

        slope, loss = float(compiled(jax.grad(loss))(0.0)), compiled(loss)
        step = 1e-6
        assert slope == pytest.approx(float(loss(step) - loss(-step)) / (2 * step), rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_step_on_eight_devices_is_the_step_on_one(shape: dict[str, int]) -> None:
    # Plain descent: AdamW would blow the last bits of a gradient near zero up to a whole step.
    optimizer, data, after = optax.sgd(0.1), batch([8, 12, 5, 9, 11, 4, 6, 10], 16), []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(shape)):
        where = State(param_shardings(CONFIG, PARAMS, mesh), optimizer.init(PARAMS))
        state = State(jax.device_put(fresh(), where.params), where.optimizer)
        run = make_step(CONFIG, STAGE, optimizer, mesh, where)
        for _ in range(2):
            state, metrics = run(state, data)
        after.append((jax.device_get(state.params), float(metrics["loss"])))
    assert after[0][1] == pytest.approx(after[1][1], abs=1e-5)
    assert_close(after[0][0], after[1][0], atol=1e-6)


def test_weight_decay_acts_on_matrices_alone() -> None:
    optimizer = make_optimizer(Stage(init="-", steps=10, learning_rate=1e-2, weight_decay=0.5), 10)
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates["stacks"]["0"]["attention_norm"])) == 0
    assert float(optax.tree.norm(updates["norm"])) == 0
    assert float(optax.tree.norm(updates["stacks"]["0"]["ffn"])) > 0
    assert float(optax.tree.norm(updates["embed"])) > 0


def test_schedules_reach_what_they_promise() -> None:
    common = {"init": "-", "steps": 100, "learning_rate": 1.0, "warmup_steps": 10, "final_learning_rate": 0.1}
    for schedule, middle in (("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)):
        rate = learning_rate(Stage(**common, schedule=schedule), 100)
        assert float(rate(0)) == 0.0
        assert float(rate(5)) == pytest.approx(0.5)
        assert float(rate(10)) == pytest.approx(1.0)
        assert float(rate(55)) == pytest.approx(middle, abs=1e-6)
        assert float(rate(100)) == pytest.approx(1.0 if schedule == "constant" else 0.1, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 16, None])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_chunks_change_neither_loss_nor_gradient(chunk: int | None, softcap: float | None) -> None:
    config = CONFIG.model_copy(update={"logit_softcap": softcap})
    data, hidden = batch([8, 12, 5], 16), jax.random.normal(jax.random.key(1), (3, 16, 32))
    score = partial(decoder.scores, config)
    loss, parts, _ = objective_of(STAGE, data, {})

    def whole(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return token_sums(score(hidden, head), data["targets"], data["mask"]).loss / 7

    def chunked(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return chunked_sums(score, loss, hidden, head, parts, {}, chunk).loss / 7

    both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, PARAMS["embed"]) for f in (whole, chunked)]
    assert float(both[0][0]) == pytest.approx(float(both[1][0]), abs=1e-6)
    assert float(jax.jit(chunked)(hidden, PARAMS["embed"])) == pytest.approx(float(both[0][0]), abs=1e-6)
    assert_close(both[0][1], both[1][1])


def test_scores_are_never_held_for_all_positions_at_once() -> None:
    hidden, head = jnp.zeros((4, 512, 32)), jnp.zeros((32000, 32))
    loss, parts, _ = objective_of(STAGE, {"targets": jnp.zeros((4, 512), jnp.int32), "mask": jnp.ones((4, 512))}, {})
    total = lambda hidden, head: chunked_sums(partial(decoder.scores, CONFIG), loss, hidden, head, parts, {}).loss  # noqa: E731
    used = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, head).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * 512 * 32000 * 4 / 2
