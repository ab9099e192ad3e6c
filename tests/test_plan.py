"""What a run would do, in numbers."""

import json
from pathlib import Path
from typing import Any

from distill.config import Recipe, load_recipe
from distill.plan import plan, table


def recipe(**prompts: Any) -> Recipe:
    return load_recipe(
        {
            "run": "r",
            "models": {"teacher": {"source": "org/big"}, "student": {"source": "org/small"}},
            "prompts": {"source": "org/data", "batch_size": 1024, **prompts},
            "generation": {"num_generations": 2},
            "stages": {"sft": {"init": "student", "steps": 1}},
        }
    )


def test_before_the_dataset_is_read(tmp_path: Path) -> None:
    counted = plan(recipe(num_batches=200), tmp_path / "index.json")
    assert (counted["batches"], counted["prompts"], counted["samples"]) == (200, 204_800, 409_600)
    assert "at most 409,600 (2 a prompt)" in table(counted)
    counted = plan(recipe(), tmp_path / "index.json")
    assert counted["prompts"] is None
    assert "all that the dataset has" in table(counted)


def test_once_it_is_read(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"batches": {"0000": {"kept": 1000}, "0001": {"kept": 7}}}))
    counted = plan(recipe(num_batches=2), index)
    assert (counted["batches"], counted["prompts"], counted["samples"]) == (2, 1007, 2014)
    assert "at most" not in table(counted)
    assert "from student, on generated answers" in table(counted)
