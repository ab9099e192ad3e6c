"""The kernels in C say what XLA says, and a row's bits are its own."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny_config

from distill.models.attention import attend, attend_one_in_c
from distill.models.families import config_from_hf
from distill.models.int8 import quantized
from distill.models.panels import for_rows, panel_products, panelled
from distill.native.library import kernels

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)
WIDTH = kernels().distill_panel()
ROOM = 320


def weights(*shapes: tuple[int, int]) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("depth", [1, 7, 64, 1024, 1025, 2500])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_products_of_any_size(depth: int, eight_bits: bool) -> None:
    """Outputs that fill no panel, one, several; rows that fill no block, one, several."""
    matrices = weights((1, depth), (WIDTH, depth), (5 * WIDTH + 3, depth))
    given = [quantized(matrix) for matrix in matrices] if eight_bits else matrices
    panels = tuple(panelled(matrix, 1, WIDTH) for matrix in given)
    exact = [np.asarray(m.wide() if eight_bits else m, np.float64) for m in given]
    for rows in (1, 2, 5, 6, 7, 13, 15, 29, 64):
        x = jax.random.normal(jax.random.key(rows), (rows, 1, depth))
        for ours, matrix in zip(jax.jit(panel_products)(x, panels), exact, strict=True):
            wanted = np.asarray(x, np.float64)[:, 0] @ matrix.T
            # √D roundings add up at random, each of a partial sum of size √D.
            np.testing.assert_allclose(ours[:, 0], wanted, atol=1e-6 + 2e-7 * depth, rtol=1e-6)


@pytest.mark.parametrize("eight_bits", [False, True])
def test_bits_of_a_row_depend_on_that_row_alone(eight_bits: bool) -> None:
    """However many rows there are, whichever it is, and whatever else is multiplied with it."""
    matrices = weights((3 * WIDTH + 5, 1300), (9 * WIDTH, 1300))
    panels = tuple(panelled(quantized(m) if eight_bits else m, 1, WIDTH) for m in matrices)
    x = jax.random.normal(jax.random.key(9), (64, 1, 1300))
    whole = panel_products(x, panels)
    for rows in (slice(0, 1), slice(5, 6), slice(3, 5), slice(7, 20), slice(31, 64)):
        for i, ours in enumerate(panel_products(x[rows], panels)):
            assert np.array_equal(ours, whole[i][rows])
        assert np.array_equal(panel_products(x[rows], panels[1:])[0], whole[1][rows])
    assert np.array_equal(panel_products(x.reshape(2, 32, -1), panels)[0].reshape(64, 1, -1), whole[0])


@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize("few", [0, 1, 2, 7, 20])
def test_rows_that_are_not_wanted_get_zeros_and_reach_no_other(few: int, eight_bits: bool) -> None:
    """Outputs that fill no panel, and several; depths of one part and of two."""
    for depth in (40, 1100):
        matrices = weights((3, depth), (9 * WIDTH + 5, depth))
        panels = tuple(panelled(quantized(m) if eight_bits else m, 1, WIDTH) for m in matrices)
        x = jax.random.normal(jax.random.key(9), (4, 5, depth))
        wanted = np.zeros(20, bool)
        wanted[np.random.default_rng(few).permutation(20)[:few]] = True
        wanted = wanted.reshape(4, 5)
        given = jnp.where(wanted[..., None], x, jnp.nan)
        for ours, whole in zip(
            panel_products(given, for_rows(panels, jnp.asarray(wanted))), panel_products(x, panels), strict=True
        ):
            assert np.array_equal(ours, np.where(wanted[..., None], whole, 0.0))


def test_rows_of_an_embedding_in_panels() -> None:
    (matrix,) = weights((3 * WIDTH + 5, 24))
    tokens = jnp.asarray([[0, WIDTH - 1, WIDTH], [3 * WIDTH + 4, 7, 1]])
    assert np.array_equal(panelled(matrix, 1, WIDTH)[tokens], matrix[tokens])
    eight = quantized(matrix)
    assert np.array_equal(panelled(eight, 1, WIDTH)[tokens], eight[tokens].wide())


def attention_case(heads: int, kv_heads: int, depth: int, cap: float | None = None) -> tuple:
    config = config_from_hf(tiny_config(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=depth))
    config = config.model_copy(update={"attention_softcap": cap})
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (6, heads, depth))
    k, v = (jax.random.normal(key, (6, kv_heads, ROOM, depth)) for key in keys[1:])
    return config, 3 * q, k, v


def seen_by(lengths: list[int], window: int = ROOM) -> jax.Array:
    slots, ends = jnp.arange(ROOM)[None], jnp.asarray(lengths)[:, None]
    return (slots < ends) & (slots >= ends - window)


def cut(x: jax.Array, *sizes: int) -> list[jax.Array]:
    return jnp.split(x, np.cumsum(sizes)[:-1], axis=-2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("depth", [6, 8, 48, 64, 80, 130])
def test_attention_over_pieces(heads: int, kv_heads: int, depth: int) -> None:
    config, q, k, v = attention_case(heads, kv_heads, depth)
    pieces, wanted_of = [cut(x, 64, 64, 128, 64) for x in (k, v)], jax.jit(partial(attend, config))
    for window in (ROOM, 70, 3):
        seen = seen_by([1, 2, 64, 65, 200, ROOM], window)
        ours = attend_one_in_c(config, q, *pieces, seen)
        np.testing.assert_allclose(ours, wanted_of(q[:, None], k, v, seen[:, None])[:, 0], atol=3e-6)


def test_what_a_row_does_not_see_reaches_no_bit() -> None:
    """Neither slots behind its own, nor how they are cut into pieces, nor other rows."""
    config, q, k, v = attention_case(6, 2, 48)
    lengths = [1, 3, 64, 100, 128, 190]
    seen = seen_by(lengths)
    whole = attend_one_in_c(config, q, [k], [v], seen)
    few = [k[..., :192, :]], [v[..., :192, :]]
    assert np.array_equal(attend_one_in_c(config, q, *few, seen[:, :192]), whole)
    assert np.array_equal(attend_one_in_c(config, q, cut(k, 64, 128, 128), cut(v, 64, 128, 128), seen), whole)
    unseen = jnp.where(seen[:, None, :, None], 0.0, 1e9)
    assert np.array_equal(attend_one_in_c(config, q, [k + unseen], [v + unseen], seen), whole)
    for row in range(6):
        one = slice(row, row + 1)
        assert np.array_equal(attend_one_in_c(config, q[one], [k[one]], [v[one]], seen[one]), whole[one])


def test_a_row_that_sees_nothing_says_nothing() -> None:
    config, q, k, v = attention_case(6, 2, 48)
    seen = seen_by([0, 1, 64, 0, 128, 190])
    ours = attend_one_in_c(config, q, [k], [v], seen)
    assert not np.any(ours[jnp.array([0, 3])])
    assert np.array_equal(ours[5], attend_one_in_c(config, q, [k], [v], seen_by([190] * 6))[5])


def test_a_ring_whose_oldest_slots_are_not_seen() -> None:
    """Holes in front, behind and over whole blocks."""
    config, q, k, v = attention_case(2, 2, 16)
    seen = np.ones((6, ROOM), bool)
    for row, hole in enumerate([(0, 64), (64, 192), (10, 20), (0, 319), (1, 320), (63, 65)]):
        seen[row, hole[0] : hole[1]] = False
    ours = attend_one_in_c(config, q, [k], [v], jnp.asarray(seen))
    np.testing.assert_allclose(ours, attend(config, q[:, None], k, v, seen[:, None])[:, 0], atol=3e-6)


def test_what_is_not_a_number_is_not_hidden() -> None:
    config, q, k, v = attention_case(2, 2, 16)
    seen = seen_by([1, 2, 64, 65, 200, ROOM])
    for slot in (0, 70, 128, 199):  # first, amid a block, first of the last block, newest
        ours = attend_one_in_c(config, q, [k.at[4, 0, slot].set(jnp.nan)], [v], seen)
        assert np.isnan(ours[4, 0]).all()
        assert np.isfinite(ours[4, 1]).all()
        assert np.isfinite(ours[5]).all()


def test_masses_of_nothing_but_zeros_are_not_hidden() -> None:
    config, q, k, v = attention_case(2, 2, 16)
    seen = seen_by([1, 2, 64, 65, 200, ROOM])
    ours = attend_one_in_c(config, abs(q), [k.at[4, 0].set(-jnp.inf)], [v], seen)
    assert np.isnan(ours[4, 0]).all()
    assert np.isfinite(ours[5]).all()


def test_scores_with_a_soft_cap() -> None:
    config, q, k, v = attention_case(2, 2, 16, cap=2.0)
    seen = seen_by([1, 2, 64, 65, 200, ROOM])
    ours = attend_one_in_c(config, 9 * q, [k], [v], seen)
    np.testing.assert_allclose(ours, attend(config, 9 * q[:, None], k, v, seen[:, None])[:, 0], atol=3e-6)


def load(environment: dict[str, str]) -> tuple[str, str]:
    """What a process of its own finds, and says."""
    code = "from distill.native.library import kernels; print(kernels() is not None)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def test_where_nothing_can_be_kept_they_are_compiled_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "file"), "JAX_PLATFORMS": "cpu"}
    assert load(environment) == ("True", "")


def test_they_are_compiled_once(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    assert load(environment) == ("True", "")
    (made,) = (tmp_path / "distill").iterdir()
    before = made.stat()
    assert load(environment) == ("True", "")
    assert list((tmp_path / "distill").iterdir()) == [made]
    assert made.stat().st_mtime_ns == before.st_mtime_ns


def test_without_a_compiler_xla_stands_in(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    found, said = load(environment | {"CC": "no-such-compiler"})
    assert found == "False"
    assert "there is no C compiler no-such-compiler: install gcc" in said
    for broken in ("false", "cc 'open", "cc -fno-such-flag"):
        found, said = load(environment | {"CC": broken})
        assert found == "False"
        assert "XLA's own code stands in" in said
    assert load(environment | {"DISTILL_KERNELS": "off"}) == ("False", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "panel"),
    [
        ("-D__AVX512F__=1", 32),
        ("-U__AVX512F__ -D__AVX2__=1", 16),
        ("-U__AVX512F__ -U__AVX2__", 8),
        ("-U__AVX512F__ -U__AVX2__ -D__ARM_NEON=1", 16),
    ],
)
def test_vectors_of_other_widths(flags: str, panel: int) -> None:
    """The code for processors with other vectors, lowered to those of this one."""
    environment = os.environ | {"CC": f"cc {flags}"}
    code = "from distill.native.library import kernels; print(kernels().distill_panel())"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == panel
    some = "any_size or row_alone or soft_cap or does_not_see"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", __file__, "-k", some]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
