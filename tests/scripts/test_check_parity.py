"""`scripts/check_parity.py`: what it prints, what it writes, and when it says no."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def run(root: Path, source: Path, reference: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "scripts/check_parity.py", "--source", source, "--reference", reference]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(out.parent / "jax")}
    return subprocess.run([*command, "--out", out, *more], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and safetensors: that must be enough."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(root / "tests/golden/qwen2" / name, folder)
    return folder


def test_equal_logits_pass(root: Path, source: Path, tmp_path: Path) -> None:
    done = run(root, source, root / "tests/golden/qwen2/golden.npz", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "max |Δlogit|" in done.stdout
    assert "KL mean" in done.stdout
    assert "top-1 agreement 100.00% of 208 tokens" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert report["max_difference"] < 1e-4
    assert report["max_kl"] < 1e-6
    assert report["top1_agreement"] == 1.0


@pytest.mark.parametrize(("more", "passes"), [((), False), (("--atol", "0.1", "--max-kl", "0.1"), True)])
def test_other_logits_fail_and_leave_a_report(root: Path, source: Path, tmp_path: Path, more, passes) -> None:
    with np.load(root / "tests/golden/qwen2/golden.npz") as arrays:
        ids, logits = arrays["input_ids"][:1], arrays["logits"][:1].copy()
    logits[0, 7, 3] += 0.01
    np.savez(tmp_path / "reference.npz", input_ids=ids, logits=logits)
    done = run(root, source, tmp_path / "reference.npz", tmp_path / "report.json", *more)
    assert done.returncode == (0 if passes else 1)
    assert ("error: " in done.stderr) is not passes
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is passes
    assert report["max_difference"] == pytest.approx(0.01, abs=1e-4)
