"""The page of an experiment, from a run's files."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.config import load_recipe
from distill.errors import DistillError
from distill.evaluation.evidence import write_evidence
from distill.files import read_json

ARM = {"init": "student", "steps": 10, "held_out": "evaluation", "seeds": [0, 1]}
RECIPE = {
    "run": "trial",
    "models": {"teacher": {"source": "t"}, "student": {"source": "s"}},
    "prompts": {"source": "p.jsonl"},
    "generation": {"num_generations": 2},
    "stages": {
        "ce": ARM | {"data": [{"source": "gold.jsonl"}]},
        "kd": ARM | {"data": [{"source": "generated", "samples": 1}]},
    },
    "evaluation": {"source": "e.jsonl"},
    "comparison": {"baseline": "ce"},
}
NLL = {"teacher": 0.1, "ce-seed0": 1.1, "ce-seed1": 1.2, "kd-seed0": 0.6, "kd-seed1": 0.65}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "completions").mkdir()
    for name, nll in NLL.items():
        told = {"source": "e.jsonl", "count": 5, "tokens": 50, "nll": nll, "kl": None, "exact_match": None}
        (tmp_path / f"evaluation/{name}.json").write_text(json.dumps(told))
        if name != "teacher":
            (tmp_path / f"students/{name}").mkdir(parents=True)
            rows = [{"operations": 1e9 * i, "held_out_loss": nll + (10 - i) / 10} for i in range(1, 11)]
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            (tmp_path / f"students/{name}/metrics.jsonl").write_text(text)
    samples = {"sample": [0, 1], "prompt_token_ids": [[1] * 4] * 2, "completion_token_ids": [[1] * 6, [1] * 90]}
    pq.write_table(pa.table(samples), tmp_path / "completions/0000.parquet")
    import_checkpoint(tiny_llama(tmp_path / "hf"), tmp_path / "teacher", dtype="float32", origin="tiny")
    return tmp_path


def test_arms_stand_side_by_side(run: Path) -> None:
    write_evidence(run, load_recipe(RECIPE), run / "teacher", run / "evidence")
    found = read_json(run / "evidence/arms.json")
    assert found["arms"]["kd"]["gain"]["nll"]["mean"] == pytest.approx(0.525 / 1.05)
    assert found["arms"]["ce"]["operations"]["answering"] == 0
    answering = found["arms"]["kd"]["operations"]["answering"]
    weights = read_json(run / "teacher/model.json")["parameters"]
    assert 10 * weights < answering < 10 * 2 * weights + 1e5, "ten tokens of the first sample alone"
    equal = found["equal_compute"]
    assert equal["operations"] == 1e10
    assert equal["arms"]["kd"]["nll"]["mean"] == pytest.approx(0.625 + answering / 1e10, abs=1e-6)
    page = (run / "evidence/README.md").read_text()
    assert "| kd | 2 | 0.625 (" in page
    for name in ("gains.svg", "curves.svg"):
        assert ET.parse(run / "evidence" / name).getroot().tag.endswith("svg")


def test_a_stage_without_a_curve_is_named(run: Path) -> None:
    (run / "students/kd-seed1/metrics.jsonl").write_text('{"operations": 1, "loss": 2}\n')
    with pytest.raises(DistillError, match="stage kd-seed1 has no held_out_loss"):
        write_evidence(run, load_recipe(RECIPE), run / "teacher", run / "evidence")
