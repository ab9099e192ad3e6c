"""The golden files agree with each other: what padding and packing may not change, they did not change."""

from pathlib import Path

import numpy as np
import pytest
from golden.families import FAMILIES

HERE = Path(__file__).resolve().parent


def test_each_family_has_its_files() -> None:
    assert {path.parent.name for path in HERE.glob("*/golden.npz")} == set(FAMILIES)
    assert {path.parent.name for path in HERE.glob("*/model.safetensors")} == set(FAMILIES)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"phi3_longrope"}))
def test_a_token_knows_nothing_of_padding_or_of_its_neighbour_in_the_row(name: str) -> None:
    golden = np.load(HERE / name / "golden.npz")
    logits, padded, packed = golden["logits"], golden["padded_logits"], golden["packed_logits"][0]
    real = golden["padded_attention_mask"].astype(bool)
    first = golden["packed_segment_ids"][0] == 1
    for row, parts in enumerate([(padded[0, real[0]], packed[first]), (padded[1, real[1]], packed[~first])]):
        for part in parts:
            np.testing.assert_allclose(part, logits[row, : len(part)], atol=1e-5)
    assert not padded[~real].any()
