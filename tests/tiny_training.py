"""A tiny student, batches for it, and what it means that two trees are close."""

import jax
import numpy as np
from tiny_models import tiny_config

from distill.models import decoder, layouts
from distill.models.families import config_from_hf

CONFIG = config_from_hf(tiny_config())


def fresh() -> decoder.Params:
    """The same weights each time, in memory of their own."""
    return layouts.stack(CONFIG, decoder.init(CONFIG, jax.random.key(0)))


PARAMS = fresh()


def batch(lengths: list[int], width: int, prompt: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A row for each length; the first `prompt` tokens of each are not learned."""
    rows = [np.random.default_rng([seed, i]).integers(6, 35, n + 1) for i, n in enumerate(lengths)]
    out = {name: np.zeros((len(rows), width), np.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
    out["mask"] = np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        n = len(row) - 1
        out["tokens"][i, :n], out["targets"][i, :n] = row[:-1], row[1:]
        out["positions"][i, :n], out["segment_ids"][i, :n] = np.arange(n), 1
        out["mask"][i, prompt - 1 : n] = 1
    return out


def assert_close(left: decoder.Params, right: decoder.Params, atol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)
