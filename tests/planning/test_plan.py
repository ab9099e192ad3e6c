"""What a run would do, in numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_config

from distill.config.reading import load_recipe, read_recipe
from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.files import write_json
from distill.inputs import config_file
from distill.planning.counts import count, stage_steps
from distill.planning.devices import machine
from distill.planning.models import known_models, parameters
from distill.planning.plan import plan
from distill.planning.table import table
from distill.planning.work import generation_work, training_work


def recipe(changes: dict[str, Any] | None = None, **prompts: Any) -> Recipe:
    return load_recipe(
        {
            "run": "r",
            "results": "/nowhere/results",
            "models": {"teacher": {"source": "org/big"}, "student": {"source": "org/small"}},
            "prompts": {"source": "org/data", "batch_size": 1024, **prompts},
            "generation": {"num_generations": 2, "max_prefill_length": 16, "max_target_length": 80},
            "stages": {"sft": {"init": "student", "epochs": 2, "batch_size": 8}},
            "plan": {"compile": False},
        }
        | (changes or {})
    )


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, Path | None]:
    write_json(tmp_path / "config.json", tiny_config())
    return {"teacher": tmp_path / "config.json", "student": tmp_path / "config.json"}


def test_before_the_dataset_is_read(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    counted = plan(recipe(num_batches=200), tmp_path / "index.json", configs)
    assert (counted["batches"], counted["prompts"], counted["samples"]) == (200, 204_800, 409_600)
    assert counted["tokens"]["read"] == 204_800 * 16
    assert counted["tokens"]["written"] == 409_600 * 64
    assert counted["stages"]["sft"]["steps"] == 2 * 409_600 / 8
    assert "at most 409,600 (2 a prompt), of 64 tokens at most" in table(counted)


def test_what_only_the_dataset_tells(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    counted = plan(recipe(), tmp_path / "index.json", configs)
    assert counted["prompts"] is counted["hours"] is counted["stages"]["sft"]["steps"] is None
    assert "all that the dataset has" in table(counted)
    assert "as many steps as the data gives" in table(counted)


def test_once_it_is_read(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"batches": {"0000": {"kept": 1000}, "0001": {"kept": 7}}}))
    counted = plan(recipe(num_batches=2), index, configs)
    assert (counted["batches"], counted["prompts"], counted["samples"]) == (2, 1007, 2014)
    assert "at most 1" not in table(counted)
    assert "from student, on generated answers" in table(counted)


def test_a_retry_starts_over_unless_its_work_is_kept(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    told = table(plan(recipe(), tmp_path / "none", configs))
    assert "starts over: a batch or a stage that is tried again on another machine" in told
    kept = plan(recipe({"storage": {"work": "s3://bucket/work"}}), tmp_path / "none", configs)
    assert kept["starts_over"] == []
    assert "starts over" not in table(kept)


def test_stored_logits_take_most_of_the_disk(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    """132 bytes a token for 32 of them: beside the tokens, or where nothing was captured in files of their own."""

    def sizes(**generation: int) -> dict[str, int]:
        lengths = {"num_generations": 2, "max_prefill_length": 16, "max_target_length": 80}
        soft = {"sft": {"init": "student", "steps": 9, "batch_size": 8, "objective": "topk_logits", "k": 32}}
        counted = plan(
            recipe({"generation": lengths | generation, "stages": soft}, num_batches=1), tmp_path / "x", configs
        )
        return {Path(target["path"]).name: target["bytes"] for target in counted["targets"]}

    scored, captured = sizes(), sizes(top_logits=32)
    assert scored["logits"] == captured["completions"] - scored["completions"] == 2048 * 64 * 132
    assert "logits" not in captured
    assert captured["samples"] > scored["samples"]


def test_packed_rows_take_fewer_steps(tmp_path: Path) -> None:
    """Examples of 16 + 16 tokens in rows of 80: five would be too many, by the measured fill 2.475."""
    stage = {"init": "student", "epochs": 1, "batch_size": 8, "packing": True}
    packed = recipe({"stages": {"sft": stage}, "plan": {"completion_tokens": 16}}, num_batches=1)
    steps = stage_steps(packed, packed.stages["sft"], count(packed, tmp_path / "none"))
    assert steps.steps == -(-round(2048 * 32 / (80 * 0.99)) // 8)
    assert steps.positions == steps.steps * 8 * 80


def test_rows_of_a_published_set_are_told_by_the_plan(tmp_path: Path) -> None:
    stage = {"init": "student", "epochs": 1, "batch_size": 8, "data": [{"source": "org/more"}, {"source": "original"}]}
    for rows, steps in ({}, None), ({"org/more": 976}, 250):
        told = recipe({"stages": {"sft": stage}, "plan": {"rows": rows}}, num_batches=1)
        assert stage_steps(told, told.stages["sft"], count(told, tmp_path / "none")).steps == steps


def test_hours_follow_from_the_stated_utilisation(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    """A peak of 1 TFLOP/s, half of it used, by two devices."""
    ours = {"peak_tflops": 1, "bandwidth_gbs": 1, "devices": 2, "mfu": 0.5, "compile": False}
    wanted = recipe({"plan": ours}, num_batches=1)
    counts, known = count(wanted, tmp_path / "none"), known_models(wanted, configs)["student"]
    steps = stage_steps(wanted, wanted.stages["sft"], counts)
    work = training_work(known, steps, wanted.plan, machine(wanted.plan), frozen=False)
    attention = 2 * 2 * (80 / 2) * 4 * (8 + 8)  # layers, multiply and add, positions seen, heads, their widths
    assert work.operations == steps.positions * (6 * parameters(known.config) + 3 * attention)
    assert work.hours == pytest.approx(work.operations / 1e12 / 3600)
    slow = generation_work(wanted, known, counts, machine(wanted.plan), held=10**9)
    by_memory = 2048 * 64 / wanted.generation.slots * 2 / 3600  # a step moves 1 GB at half of 1 GB/s
    assert slow.hours == pytest.approx(by_memory, rel=1e-3)


def test_what_would_not_fit_is_said_first(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    small = {"compile": False, "memory_gib": 1e-5, "devices": 3}
    stages = {name: {"init": "student", "steps": 1, "max_length": 300, "batch_size": size, **more}
              for name, size, more in (("long", 9, {}), ("uneven", 8, {}), ("odd", 9, {"mesh": {"fsdp": 2}}))
             }  # fmt: skip
    faults = plan(recipe({"plan": small, "stages": stages}), tmp_path / "none", configs)["does_not_fit"]
    said = "\n".join(faults)
    assert "train odd: mesh data 1 × fsdp 2 × expert 1 × tensor 1 does not fit 3 devices" in said
    assert "train uneven: batch_size 8 cannot be split over 3 devices: take a multiple of 3" in said
    assert "stages.long.max_length is 300, the context of student is 256: lower it" in said
    assert "generate holds" in said
    assert "train long holds" in said


def test_a_model_without_a_configuration_is_named(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    counted = plan(recipe(num_batches=1), tmp_path / "none", configs | {"teacher": None})
    assert "hf download org/big config.json --local-dir recipes/models/org/big" in table(counted)
    assert list(counted["memory_per_device"]) == ["train sft"]


def test_without_teacher_and_prompts_there_are_stages_alone(tmp_path: Path, configs: dict[str, Path | None]) -> None:
    alone = recipe({"models": {"student": {"source": "org/small"}}, "prompts": None, "stages": {
        "sft": {"init": "student", "epochs": 2, "batch_size": 8, "data": [{"source": "org/qa"}]}
    }, "plan": {"compile": False, "rows": {"org/qa": 400}}})  # fmt: skip
    counted = plan(alone, tmp_path / "index.json", {"student": configs["student"]})
    assert counted["stages"]["sft"]["steps"] == 100
    assert list(counted["work"]) == ["train sft"]
    assert not any("prompts" in target["path"] or "dataset" in target["path"] for target in counted["targets"])
    lines = [" ".join(line.split()) for line in table(counted).splitlines()]
    assert "teacher none" in lines
    assert not any(line.startswith(("prompts", "samples", "batches")) for line in lines)


def test_a_device_nobody_knows_is_refused() -> None:
    with pytest.raises(DistillError, match=r"H10 is not known \(did you mean H100\?\): leave it out, and give"):
        machine(recipe({"plan": {"device": "H10"}}).plan)


def test_the_reference_recipe(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of the guide; those of parameters are what the models' cards and checkpoints have."""
    monkeypatch.chdir(root)
    reference = read_recipe(root / "recipes/deepseek2-16b-to-llama2-7b.yaml")
    reference = reference.model_copy(update={"plan": reference.plan.model_copy(update={"compile": False})})
    files = {name: config_file(model, [root / "recipes/models" / model.source])
             for name, model in reference.models.items()}  # fmt: skip
    counted = plan(reference, root / "none", files)
    assert counted["run"] == "deepseek2-16b-to-llama2-7b"
    assert (counted["batches"], counted["prompts"], counted["samples"]) == (200, 204_800, 409_600)
    assert counted["parameters"] == {"teacher": 15_706_484_224, "student": 6_738_415_616}
    memory, devices = counted["memory_per_device"], 4
    assert memory["generate"]["held"]["parameters"] == pytest.approx(2 * 15_706_484_224 / devices, rel=0.01)
    assert memory["train sft"]["held"]["optimizer"] == pytest.approx(8 * 6_738_415_616 / devices, rel=0.01)
    latents = 27 * 40 * 2112 * (512 + 64) * 2  # layers, slots, positions, latent and rotary key, bfloat16
    assert memory["generate"]["held"]["cache"] == latents
    assert {target["path"] for target in counted["targets"]} >= {
        f"results/deepseek2-16b-to-llama2-7b/{name}" for name in ("prompts", "completions", "dataset", "export/sft")
    }
