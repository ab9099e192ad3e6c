"""The target `parity`: models with a reference are compared with it, the others are named."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from project import Project

from distill.checkpoints.convert import load_checkpoint
from distill.files import read_json
from distill.models import decoder

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose teacher has a reference, made with our own decoder: no torch is needed to compare."""
    project = Project.make(tmp_path / "project")
    source = project.folder / "models/teacher"
    config, params = load_checkpoint(source, dtype="float32")
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 32), dtype=np.int32)
    logits = decoder.logits(config, params, decoder.forward(config, params, ids))
    np.savez(source / "reference.npz", input_ids=ids, logits=np.asarray(logits))
    return project


def test_a_reference_is_met_or_not(project: Project) -> None:
    outcome = project.snakemake("parity")
    assert outcome.code == 0, outcome.output
    assert any(job.startswith("compare teacher-") for job in outcome.jobs)
    (report,) = project.folder.glob("results/models/teacher-*/parity.json")
    assert read_json(report)["passed"] is True
    if not find_spec("torch"):
        assert "parity: student is left out, it has no reference.npz" in outcome.output
        assert not any("student" in job for job in outcome.jobs)
    assert project.run("parity") == []

    file = project.folder / "models/teacher/reference.npz"
    with np.load(file) as arrays:
        ids, logits = arrays["input_ids"], arrays["logits"] + np.float32(0.01)
    np.savez(file, input_ids=ids, logits=logits)
    outcome = project.snakemake("parity")
    assert outcome.code != 0
    assert "does not give the logits of" in outcome.output
