"""A run's folder with invented numbers, for tests of the report: every file that the report reads."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill.config.reading import load_recipe
from distill.config.recipe import Recipe
from distill.evaluation.summary import summarize
from distill.files import digest, write_json, write_jsonl

WORDS = ["lantern", "meadow", "thistle", "quarry", "window", "orchard", "pebble", "saddle", "willow"]


def recipe_of(stages: list[str], evaluated: bool = True, **report: object) -> Recipe:
    """A recipe whose stages follow one another."""
    inits = ["student", *stages]
    evaluation = {"evaluation": {"source": "demo/held-out.jsonl", "reference": "reference"}} if evaluated else {}
    return load_recipe({
        "run": "demo",
        "models": {"teacher": {"source": "demo/teacher"}, "student": {"source": "demo/student"}},
        "prompts": {"source": "demo/prompts.jsonl", "batch_size": 1000},
        "generation": {"max_prefill_length": 32, "max_target_length": 64, "num_generations": 2},
        "stages": {name: {"init": inits[i], "steps": 1200, "batch_size": 32, "learning_rate": 3e-3,
                          "warmup_steps": 60} for i, name in enumerate(stages)},
        "report": report,
        **evaluation,
    })  # fmt: skip


def alone_recipe() -> Recipe:
    """A recipe without teacher and prompts."""
    return load_recipe({
        "run": "demo",
        "models": {"student": {"source": "demo/student"}},
        "stages": {"sft": {"init": "student", "steps": 1200, "data": [{"source": "published.jsonl"}]}},
        "evaluation": {"source": "demo/held-out.jsonl", "reference": "reference"},
    })  # fmt: skip


def build_run(
    folder: Path,
    recipe: Recipe,
    hit: Callable[[str], float] | None = None,
    wrong: Callable[[str], str] | None = None,
) -> Path:
    """Write the files; `hit` is a model's share of right answers, `wrong` what it says otherwise."""
    chance = random.Random(0)
    for name in recipe.stages:
        _stage(folder, name, chance)
    if recipe.teacher:
        write_json(folder / "compatibility.json", _compatibility())
    if recipe.prompts:
        _completions(folder, chance)
        _ledger(folder)
        write_json(folder / "prompts" / "index.json", {
            "schema": 1, "batches": {},
            "source": {"source": recipe.prompts.source, "split": "train", "sha256": digest("prompts")},
        })  # fmt: skip
    if recipe.evaluation is None:
        return folder
    shares = {"teacher": 1.0, "student": 0.02}
    names = [name for name in (recipe.teacher, recipe.student, *recipe.stages) if name]
    for place, name in enumerate(names):
        share = hit(name) if hit else shares.get(name, 0.84 + 0.1 * (place - 2))
        write_json(folder / "evaluation" / f"{name}.json", evaluation(name, share, wrong))
    files = {name: folder / "evaluation" / f"{name}.json" for name in names}
    write_json(folder / "summary.json", summarize(files, recipe.teacher, "student", list(recipe.stages), recipe.run))
    return folder


def evaluation(name: str, share: float, wrong: Callable[[str], str] | None = None, count: int = 500) -> dict:
    """An evaluation file of a model that answers `share` of the prompts right."""
    chance = random.Random(name)
    prompts = random.Random(1)
    answers = []
    for _ in range(count):
        word = prompts.choice(WORDS) + prompts.choice(WORDS)
        right = chance.random() < share
        said = word[::-1] if right else (wrong or _garbled)(word[::-1])
        messages = [{"role": "user", "content": word}]
        answers.append({
            "prompt_id": digest([messages, len(answers)])[:16], "messages": messages, "reference": word[::-1],
            "answer": said, "finish_reason": "stop", "correct": right, "nll": 0.01 if right else 2.5,
        })  # fmt: skip
    correct = sum(answer["correct"] for answer in answers)
    return {
        "schema": 1, "model": name, "digest": digest(name), "source": "demo/held-out.jsonl", "count": count,
        "correct": correct, "exact_match": correct / count, "nll": 0.01 + 3.2 * (1 - correct / count) ** 2,
        "tokens": 4000, "answers": answers,
    }  # fmt: skip


def _garbled(word: str) -> str:
    return word[0] + word[2:-1] + word[1]


def _stage(folder: Path, name: str, chance: random.Random) -> None:
    rows = []
    for step in range(10, 1201, 10):
        rate = 3e-3 * min(1, step / 60) * (0.5 + 0.5 * math.cos(math.pi * max(0, step - 60) / 1140))
        loss = 3.1 * math.exp(-step / 140) + 0.02 * math.exp(chance.gauss(0, 0.35))
        rows.append({"step": step, "loss": loss, "learning_rate": rate, "grad_norm": 1.0, "tokens": 4096,
                     "tokens_per_second": 21000.0, "seconds": step * 0.05})  # fmt: skip
    write_jsonl(folder / "students" / name / "metrics.jsonl", rows)
    write_json(folder / "students" / name / "final.json", {
        "schema": 1, "stage": name, "step": 1200, "digest": digest(name), "examples": 7786,
        "dropped": {"overlong": 0}, "tokens": 1_264_031, "seconds": 61.7,
    })  # fmt: skip


def _completions(folder: Path, chance: random.Random) -> None:
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    for batch in range(4):
        lengths = [min(33, max(2, round(chance.gauss(14, 4)))) for _ in range(1988)]
        table = {
            "completion_token_ids": pa.array([[7] * n for n in lengths], pa.list_(pa.int32())),
            "finish_reason": ["length" if n == 33 or chance.random() < 0.015 else "stop" for n in lengths],
        }
        pq.write_table(pa.table(table), folder / "completions" / f"{batch:04}.parquet")


def _ledger(folder: Path) -> None:
    prompts = {"read": 4000, "kept": 3976, "dropped": {"overlong": 9, "duplicate": 15}}
    samples = {"asked": 7952, "kept": 7786, "dropped": {"length": 121, "empty": 0, "duplicate": 45}}
    batches = {f"{batch:04}": {} for batch in range(4)}
    write_json(folder / "dataset" / "ledger.json",
               {"schema": 1, "num_generations": 2, "prompts": prompts, "samples": samples,
                "batches": batches})  # fmt: skip


def _compatibility() -> dict:
    side = {"parameters": 281_472, "vocab_size": 64, "real_vocab": 64, "padded_rows": 0, "eos_ids": [2],
            "pad_id": None, "tokenizer_hash": digest("tokenizer"), "chat_template": True}  # fmt: skip
    why = "every id means the same to both"
    return {
        "schema": 1,
        "teacher": side,
        "student": side | {"parameters": 49_920, "vocab_size": 128, "padded_rows": 64},
        "checks": [
            {"name": "token_maps", "equal": True, "detail": "all 64 tokens have the same id"},
            {"name": "chat_templates", "equal": True, "detail": "the same"},
            {"name": "padded_vocabulary", "equal": False, "detail": "64 and 128 rows of the embedding"},
        ],
        "objectives": {
            "sft": {"open": True, "why": "the student learns from text, in its own tokens"},
            "topk_logits": {"open": False, "why": why},
        },
    }
