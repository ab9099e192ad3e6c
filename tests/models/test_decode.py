"""The decode path equals the forward path: a prompt read at once into a cache, then a token at a time.

Sequences are longer than every window, so that rings come round, and than the original context of every
scaled rotary embedding.
"""

import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_models import LENGTH, NAMES, QUICKLY, case, golden, load

from distill.models import decoder
from distill.models.cache import (
    Caches,
    cut_to,
    empty_cache,
    held,
    insert,
    joined_with,
    more_pieces,
    piece_sizes,
    slots_of,
)
from distill.models.int8 import quantize_weights
from distill.models.panels import Panels
from distill.native.weights import for_products

PROMPTS = np.array([40, 29], np.int32)  # longer than a window of 24, and than the 32 slots of its ring


@partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def read(config, params, caches: Caches, tokens, positions, valid):
    """Logits of tokens appended to caches, and these."""
    hidden, caches = decoder.extend(config, params, caches, tokens, positions, valid)
    return decoder.logits(config, params, hidden), caches


@partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def decode(config, params, caches: Caches, tokens, positions):
    """Logits [B, T, V] of tokens [B, T] that are appended one by one."""

    def step(caches, column):
        token, position = (part[:, None] for part in column)
        hidden, caches = decoder.extend(config, params, caches, token, position, jnp.ones_like(token))
        return caches, decoder.logits(config, params, hidden[:, 0])

    return jnp.swapaxes(jax.lax.scan(step, caches, (tokens.T, positions.T))[1], 0, 1)


def prompts(tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded prompts of these lengths, with their positions and which of them count."""
    positions = np.tile(np.arange(lengths.max(), dtype=np.int32), (len(lengths), 1))
    valid = (positions < lengths[:, None]).astype(np.int32)
    return tokens[:, : lengths.max()] * valid, positions, valid


@pytest.mark.parametrize("name", NAMES)
def test_cached_equals_uncached(name: str, holds) -> None:
    """Read into caches of their own, put into slots of others in another order, and decoded there."""
    config, params = load(name)
    config, wanted = config.reaching(LENGTH), case(golden(name), "plain")
    longest = PROMPTS.max()
    fresh = empty_cache(config, 2, longest, jnp.float32, chunk=longest)
    first, fresh = read(config, params, fresh, *prompts(wanted.tokens, PROMPTS))
    slots, rows = np.array([2, 0, 3], np.int32), np.array([0, 1, 0], np.int32)  # of three slots: 3 is none
    caches = insert(empty_cache(config, 3, 128, jnp.float32), fresh, slots, rows, PROMPTS)
    steps = LENGTH - longest
    positions = PROMPTS[:, None] + np.arange(steps, dtype=np.int32)[None]
    tokens = np.take_along_axis(wanted.tokens, positions, axis=1)
    idle = np.zeros((1, steps), np.int32)
    rest = decode(config, params, caches, *(np.stack([a[1], idle[0], a[0]]) for a in (tokens, positions)))
    difference = 0.0
    for row, (slot, length) in enumerate(zip((2, 0), PROMPTS, strict=True)):
        ours = np.concatenate([first[row, :length], rest[slot]])
        difference = max(difference, float(np.abs(ours - wanted.logits[row, : length + steps]).max()))
    holds(name, "cached", difference)
    assert difference <= 1e-4


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize("name", ["llama_gqa_tied", "gemma3_text", "deepseek_v2_lite", "deepseek_v3"])
def test_weights_in_panels_are_the_same_model(name: str, eight_bits: bool) -> None:
    config, params = load(name)
    if eight_bits:
        params = quantize_weights(jax.tree.map(jnp.array, params))
    tokens = case(golden(name), "plain").tokens
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))

    def answers(params: decoder.Params) -> list[jax.Array]:
        """Of a prompt, and of one token behind it."""
        caches, found = empty_cache(config, 2, LENGTH, jnp.float32, chunk=LENGTH), []
        for part in (slice(0, LENGTH - 1), slice(LENGTH - 1, LENGTH)):
            given = tokens[:, part], positions[:, part], np.ones_like(tokens[:, part])
            logits, caches = read(config, params, caches, *given)
            found.append(logits)
        return found

    changed = for_products(config, params)
    assert isinstance(changed["embed"], Panels)
    for ours, same in zip(answers(changed), answers(params), strict=True):
        np.testing.assert_allclose(ours, same, atol=1e-4)
    assert for_products(config, changed)["embed"] is changed["embed"]


@pytest.mark.parametrize("name", ["gemma3_text", "deepseek_v2_lite"])
def test_a_prompt_may_be_read_in_chunks(name: str) -> None:
    config, params = load(name)
    wanted = case(golden(name), "plain")
    caches, parts = empty_cache(config, 2, 128, jnp.float32, chunk=26), []
    for start in range(0, LENGTH, 26):
        tokens = wanted.tokens[:, start : start + 26]
        positions = np.tile(np.arange(start, start + 26, dtype=np.int32), (2, 1))
        logits, caches = read(config, params, caches, tokens, positions, np.ones_like(tokens))
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted.logits, atol=1e-4)


@pytest.mark.parametrize("name", ["llama_gqa_tied", "gemma3_text", "deepseek_v2_lite", "deepseek_v3"])
def test_one_token_of_each_row_may_be_asked_for(name: str) -> None:
    """The last layer answers no other; the caches hold all of them."""
    config, params = load(name)
    config = config.reaching(LENGTH)
    longest, given = PROMPTS.max(), prompts(case(golden(name), "plain").tokens, PROMPTS)

    @partial(jax.jit, compiler_options=QUICKLY)
    def last(params):
        fresh = empty_cache(config, 2, longest, jnp.float32, chunk=longest)
        hidden, caches = decoder.extend(config, params, fresh, *given, only=PROMPTS - 1)
        return decoder.logits(config, params, hidden), caches

    logits, caches = read(config, params, empty_cache(config, 2, longest, jnp.float32, chunk=longest), *given)
    for weights in (params, for_products(config, params)):
        one, same = last(weights)
        assert one.shape == (2, 1, config.vocab_size)
        np.testing.assert_allclose(one[:, 0], logits[np.arange(2), PROMPTS - 1], atol=2e-5, rtol=2e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5), same, caches)


def test_layers_with_a_window_hold_no_more_than_it_needs() -> None:
    config, _ = load("gemma3_text")  # windows of 24, 24, none
    assert [slots_of(c) for c in empty_cache(config, 1, 4096, jnp.float32)] == [64, 64, 4096]
    assert [slots_of(c) for c in empty_cache(config, 1, 4096, jnp.float32, chunk=60)] == [128, 128, 4096]
    assert [slots_of(c) for c in empty_cache(config, 1, 16, jnp.float32)] == [16, 16, 16]


def test_latent_attention_holds_latents() -> None:
    config, _ = load("deepseek_v2_lite")
    shapes = jax.tree.map(lambda leaf: leaf.shape, empty_cache(config, 5, 64, jnp.float32))
    assert shapes == [{"latent": [(5, 64, 16)], "rope": [(5, 64, 8)]}] * 3


def test_a_cache_in_pieces_grows_and_shrinks_by_pieces() -> None:
    """The layers with a window stop at their ring; later pieces are larger, and the last one is what is left."""
    assert piece_sizes(13, 1) == [1, 1, 1, 1, 2, 2, 4, 1]
    config, _ = load("gemma3_text")
    caches = empty_cache(config, 2, 128, jnp.float32, piece=32, chunk=9)
    sizes = lambda caches: [[piece.shape[2] for piece in cache["k"]] for cache in caches]  # noqa: E731
    assert sizes(caches) == [[32, 32], [32, 32], [32] * 4]
    grown = joined_with(caches, more_pieces(config, caches, 200, 32))
    assert sizes(grown) == [[32, 32], [32, 32], [32, 32, 32, 32, 64, 8]]
    assert grown[2]["v"][0] is caches[2]["v"][0]
    assert sizes(cut_to(config, grown, 64, 32)) == [[32, 32]] * 3


@pytest.mark.parametrize("name", ["gemma3_text", "deepseek_v2_lite"])
def test_pieces_change_nothing(name: str) -> None:
    """The same tokens into one array and into pieces of 16 slots, chunks that cross from one to the next included."""
    config, params = load(name)
    tokens = case(golden(name), "plain").tokens[:, :60]
    positions = np.tile(np.arange(60, dtype=np.int32), (2, 1))
    given = []
    for piece in (None, 16):
        caches = empty_cache(config, 2, 64, jnp.float32, chunk=26, piece=piece)
        parts = []
        for part in (slice(0, 26), slice(26, 40)):
            chunk = tokens[:, part], positions[:, part], np.ones_like(tokens[:, part])
            logits, caches = read(config, params, caches, *chunk)
            parts.append(logits)
        rest = decode(config, params, caches, tokens[:, 40:], positions[:, 40:])
        given.append(np.concatenate([*parts, rest], axis=1))
    np.testing.assert_allclose(*given, atol=1e-5)


def test_a_ring_of_four_after_six_positions() -> None:
    np.testing.assert_array_equal(held(jnp.array([5, 1, -1]), 4), [[4, 5, 2, 3], [0, 1, -2, -1], [-4, -3, -2, -1]])


def test_longrope_with_a_cache_asks_how_long_sequences_may_get() -> None:
    config, params = load("phi3_longrope")
    caches = empty_cache(config, 1, 8, jnp.float32)
    token = np.zeros((1, 1), np.int32)
    with pytest.raises(ValueError, match="reaching"):
        decoder.extend(config, params, caches, token, token, token + 1)
