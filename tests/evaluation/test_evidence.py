"""The page of an experiment, from a run's files."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.config.reading import load_recipe
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


def test_what_is_withheld_is_said_with_its_reason(run: Path) -> None:
    for file in run.glob("students/*/metrics.jsonl"):
        rows = [{"operations": i, "held_out_loss": 1.0} for i in range(1, 11)]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_evidence(run, load_recipe(RECIPE), run / "teacher", run / "evidence")
    page = (run / "evidence/README.md").read_text()
    assert "- kd, NLL at equal compute: what the teacher did before alone cost more" in page.split("## Withheld")[1]


def test_logits_that_were_scored_are_paid_for(run: Path) -> None:
    """Those of gold text are; those that came with the answers are not, nor are those that another arm reads."""
    soft = ARM | {"objective": "topk_logits", "k": 8}
    gold = {"source": "gold.jsonl"}
    stages = RECIPE["stages"] | {
        "captured": soft | {"data": [{"source": "generated", "samples": 1}]},
        "scored": soft | {"data": [{"source": "generated"}], "k": 9},
        "gold": soft | {"data": [gold]},
    }
    recipe = load_recipe(RECIPE | {"stages": stages, "generation": {"num_generations": 2, "top_logits": 8}})
    for name in ("captured", "scored", "gold"):
        for seed in (0, 1):
            for path in (f"evaluation/{name}-seed{seed}.json", f"students/{name}-seed{seed}/metrics.jsonl"):
                (run / path).parent.mkdir(exist_ok=True)
                (run / path).write_text((run / path.replace(name, "kd")).read_text())
    (run / "logits").mkdir()
    text = {"sample": [0], "prompt_token_ids": [[1] * 10], "completion_token_ids": [[1] * 20]}
    pq.write_table(pa.table(text), run / f"logits/published-{recipe.stages['gold-seed0'].data[0].id8}.parquet")
    (run / "logits/0000.parquet").write_bytes((run / "completions/0000.parquet").read_bytes())
    write_evidence(run, recipe, run / "teacher", run / "evidence")
    arms = read_json(run / "evidence/arms.json")["arms"]
    spent = {name: (arm["operations"]["answering"], arm["operations"]["scoring"]) for name, arm in arms.items()}
    weights = read_json(run / "teacher/model.json")["parameters"]
    assert spent["ce"] == (0, 0)
    assert spent["captured"] == (spent["kd"][0], 0)
    assert spent["scored"] == (spent["scored"][0],) * 2, "what was written is read once more, both samples of it"
    assert spent["gold"][0] == 0
    assert 30 * weights < spent["gold"][1] < 30 * 2 * weights + 3e5
    assert arms["gold"]["operations"]["in_all"] == 1e10 + spent["gold"][1]


def test_a_stage_without_a_curve_is_named(run: Path) -> None:
    (run / "students/kd-seed1/metrics.jsonl").write_text('{"operations": 1, "loss": 2}\n')
    with pytest.raises(DistillError, match="stage kd-seed1 has no held_out_loss"):
        write_evidence(run, load_recipe(RECIPE), run / "teacher", run / "evidence")
