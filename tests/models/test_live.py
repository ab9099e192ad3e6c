"""The parity tests against `transformers` itself, on checkpoints that no golden file holds.

They need torch (`pip install .[parity]`) and are skipped without it; test_parity.py, on the golden files, is not.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from golden.families import BASE, FAMILIES
from golden_models import ATOL, CASES, FOLDER, LENGTH, MEAN_KL, NAMES, case, run

from distill.checkpoints.convert import load_checkpoint
from distill.checkpoints.hf import their_tensors, write_shards
from distill.checkpoints.store import flat
from distill.evaluation.parity import check_parity
from distill.evaluation.reference import make_reference
from distill.files import write_json
from distill.models import decoder
from distill.models.families import config_to_hf, weight_rows
from distill.models.table import weights

torch = pytest.importorskip("torch", reason="the live half needs torch: pip install .[parity]")
sys.path.insert(0, str(FOLDER))
from make_golden import PLAIN, build, difference, fill, packed, padded  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


@pytest.fixture(autouse=True)
def without_gradients() -> None:
    torch.set_grad_enabled(False)


def drawn(name: str):
    """A model of a family's golden settings with weights and tokens of its own."""
    model, generator = build(FAMILIES[name]), torch.Generator().manual_seed(1000 + NAMES.index(name))
    fill(model, generator)
    return model, torch.randint(3, BASE["vocab_size"], (2, LENGTH), generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers_live(name: str, tmp_path: Path, holds) -> None:
    model, ids = drawn(name)
    model.save_pretrained(tmp_path)
    arrays = {"input_ids": ids, "logits": model(input_ids=ids, use_cache=False).logits}
    arrays |= padded(model, ids) | packed(model, ids)
    kinds = {torch.int64: np.int32, torch.float32: np.float32}
    arrays = {key: value.numpy().astype(kinds[value.dtype]) for key, value in arrays.items()}
    config, params = load_checkpoint(tmp_path, dtype="float32")
    for which in CASES:
        wanted = case(arrays, which)
        parity = wanted.parity(run(config, params, wanted))
        holds(name, f"live {which}", parity.max_difference)
        assert parity.max_difference <= ATOL
        assert parity.mean_kl <= MEAN_KL


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_what_we_write(name: str, tmp_path: Path, holds) -> None:
    """Our tensors with our configuration: none missing, none unexpected, and the very same logits."""
    model, ids = drawn(name)
    model.save_pretrained(tmp_path / "theirs")
    config, params = load_checkpoint(tmp_path / "theirs", dtype="float32")
    leaves, out = flat(params), tmp_path / "ours"
    out.mkdir()
    table = weights(config, weight_rows(config), decoder.weight_axes(config))
    write_shards(out, their_tensors(table, lambda weight: np.asarray(leaves[weight.ours])), shard_bytes=20_000)
    words = {name: BASE[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}  # the tokenizer's part
    write_json(out / "config.json", config_to_hf(config) | words)
    back, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, **PLAIN)
    assert not any(info.values()), info
    assert difference(back.eval(), ids, model(input_ids=ids, use_cache=False).logits) == 0
    holds(name, "loads in transformers")


def test_a_reference_is_made_and_met(tmp_path: Path) -> None:
    make_reference(FOLDER / "qwen3", tmp_path / "reference.npz")
    parity = check_parity(FOLDER / "qwen3", tmp_path / "reference.npz", tmp_path / "out.json", atol=1e-4, max_kl=1e-6)
    assert parity.within(1e-4, 1e-6)
    assert parity.tokens == 256
