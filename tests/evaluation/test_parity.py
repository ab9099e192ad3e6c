"""References that cannot be one are refused in a line that says why."""

from pathlib import Path

import numpy as np
import pytest

from distill.errors import DistillError
from distill.evaluation.parity import check_parity

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
IDS, LOGITS = np.zeros((1, 4), np.int32), np.zeros((1, 4, 80), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": IDS}, "no npz with input_ids and logits"),
        ({"input_ids": IDS, "logits": LOGITS[0]}, r"logits float32 \[4, 80\]; expected"),
        ({"input_ids": IDS[:, :3], "logits": LOGITS}, r"input_ids int32 \[1, 3\]"),
        ({"input_ids": IDS.astype(np.float32), "logits": LOGITS}, "input_ids float32"),
        ({"input_ids": IDS[:, :0], "logits": LOGITS[:, :0]}, r"\[1, 0\]"),
        ({"input_ids": IDS, "logits": LOGITS[..., :79]}, "logits for 79 ids"),
        ({"input_ids": IDS + 80, "logits": LOGITS}, "from 80 to 80"),
        ({"input_ids": IDS, "logits": np.array([[None] * 4])}, "no npz with input_ids and logits"),
    ],
)
def test_a_reference_of_something_else(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(DistillError, match=message):
        check_parity(GOLDEN / "mistral", tmp_path / "reference.npz", tmp_path / "out", atol=1, max_kl=1)
    assert not (tmp_path / "out").exists()


def test_a_reference_that_is_not_there_or_no_npz(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="does not exist"):
        check_parity(GOLDEN / "mistral", tmp_path / "none.npz", tmp_path / "out", atol=1, max_kl=1)
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(DistillError, match="no npz"):
        check_parity(GOLDEN / "mistral", tmp_path / "text.npz", tmp_path / "out", atol=1, max_kl=1)
