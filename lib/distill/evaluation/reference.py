"""Logits of the reference implementation, `transformers` with torch, for `check_parity` to meet."""

from pathlib import Path

import numpy as np

from distill.errors import DistillError
from distill.files import replacing

ROWS, LENGTH = 2, 128


def make_reference(source: Path, out: Path) -> None:
    """Write an npz of random `input_ids` [2, 128] int32 and the float32 `logits` that the model in `source` gives."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise DistillError("a reference needs torch: pip install .[parity]") from None
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (ROWS, LENGTH), dtype=np.int32)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids).long(), use_cache=False).logits
    with replacing(out) as tmp, tmp.open("wb") as file:
        np.savez(file, input_ids=ids, logits=logits.numpy())
