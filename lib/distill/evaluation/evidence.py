"""Whether distillation helped: the arms of a recipe with their intervals, at equal tokens and at equal compute.

Equal tokens: every arm's last step. Equal compute: what a run's own curve says where it, with all that the teacher
did for it, had spent as much as the cheapest arm did in all.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.checkpoints.info import read_info
from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.evaluation.arm_plots import arm_curves, arm_gains
from distill.evaluation.arms import SCORES, at_operations, compare_arms, gain, interval
from distill.files import read_json, read_jsonl, replacing, write_json
from distill.training.examples import has_logits_of
from distill.training.speed import token_operations

CURVE = "held_out_loss"
Curve = list[tuple[float, float]]


def write_evidence(run: Path, recipe: Recipe, teacher: Path, out: Path) -> None:
    """Write the folder `out`: arms.json, README.md with its tables, gains.svg and curves.svg.

    run: the run's folder, with scores and curves of all stages. teacher: its params folder.
    """
    told = read_json(run / "evaluation" / f"{recipe.teacher}.json")
    arms = {
        arm: {seed: read_json(run / "evaluation" / f"{stage}.json") for seed, stage in seeds.items()}
        for arm, seeds in recipe.arms.items()
    }
    work = {
        arm: {name: of(run, recipe, teacher, next(iter(seeds.values()))) for name, of in TEACHER_WORK.items()}
        for arm, seeds in recipe.arms.items()
    }
    curves = {
        arm: {seed: _curve(run, stage, sum(work[arm].values())) for seed, stage in seeds.items()}
        for arm, seeds in recipe.arms.items()
    }
    found = {
        "schema": 1,
        "run": recipe.run,
        "baseline": recipe.comparison.baseline,
        "held_out": {"source": told["source"], "count": told["count"], "tokens": told["tokens"]},
        "teacher": {score: told.get(score) for score in SCORES},
        "arms": compare_arms(arms, recipe.comparison.baseline, told),
    }
    budget = min(curve[-1][0] for seeds in curves.values() for curve in seeds.values())
    found["equal_compute"] = _equal_compute(curves, recipe.comparison.baseline, told["nll"], budget)
    for arm, seeds in curves.items():
        spent = {curve[-1][0] for curve in seeds.values()}
        found["arms"][arm]["operations"] = {"in_all": max(spent), **work[arm]}
    with replacing(out) as tmp:
        tmp.mkdir()
        write_json(tmp / "arms.json", found)
        (tmp / "gains.svg").write_text(arm_gains(found["arms"]), encoding="utf-8")
        (tmp / "curves.svg").write_text(arm_curves(curves, told["nll"], budget), encoding="utf-8")
        page = _environment().get_template("evidence.md.j2").render(found=found, recipe=recipe)
        (tmp / "README.md").write_text(page, encoding="utf-8")


def _equal_compute(curves: dict[str, dict[int, Curve]], baseline: str, teacher: float, budget: float) -> dict[str, Any]:
    """NLL of each arm at `budget` operations, and its gain there."""
    at = {arm: {seed: at_operations(curve, budget) for seed, curve in seeds.items()} for arm, seeds in curves.items()}
    out: dict[str, Any] = {}
    for arm, seeds in at.items():
        if any(value is None for value in seeds.values()):
            out[arm] = {"nll": None, "gain": None, "withheld": "what the teacher did before alone cost more"}
            continue
        found, reason = (None, "the baseline itself") if arm == baseline else gain(seeds, at[baseline], teacher)
        nll = interval(list(seeds.values()))._asdict()
        out[arm] = {"nll": nll, "gain": found and found._asdict(), "withheld": reason}
    return {"operations": budget, "arms": out}


def _curve(run: Path, stage: str, before: float) -> Curve:
    """(operations spent, held-out NLL) of a stage that starts when `before` are spent."""
    rows = read_jsonl(run / "students" / stage / "metrics.jsonl")
    curve = [(before + row["operations"], row[CURVE]) for row in rows if row.get(CURVE) is not None]
    if not curve:
        raise DistillError(
            f"stage {stage} has no {CURVE} in its metrics: a recipe with a comparison needs `held_out: evaluation` "
            "in every stage"
        )
    return curve


def _answering(run: Path, recipe: Recipe, teacher: Path, stage: str) -> float:
    """Operations of a teacher that wrote the answers that a stage learns."""
    parts = [part for part in recipe.stages[stage].data if part.source == "generated"]
    if not parts or recipe.dataset.completions == "own":
        return 0.0
    samples = max(part.samples or recipe.generation.num_generations for part in parts)
    return _reading(teacher, sorted((run / "completions").glob("*.parquet")), samples)


def _scoring(run: Path, recipe: Recipe, teacher: Path, stage: str) -> float:
    """Operations of a teacher that read text for the logits that a stage takes, where they did not come with it."""
    if recipe.stages[stage].objective != "topk_logits":
        return 0.0
    total = 0.0
    for part in recipe.stages[stage].data:
        if part.source == "generated" and recipe.captured(stage):
            continue
        files = [file for file in sorted((run / "logits").glob("*.parquet")) if has_logits_of(file, part)]
        total += _reading(teacher, files, part.samples)
    return total


def _reading(teacher: Path, files: Iterable[Path], samples: int | None) -> float:
    """Operations of a teacher that reads, or writes, each of the first `samples` completions to a prompt once."""
    tokens = rows = 0
    for path in files:
        table = pq.read_table(path, columns=["sample", "prompt_token_ids", "completion_token_ids"])
        if samples is not None:
            table = table.filter(pc.less(table["sample"], samples))
        lengths = (pc.list_value_length(table[name]) for name in ("prompt_token_ids", "completion_token_ids"))
        tokens += sum(pc.sum(length).as_py() or 0 for length in lengths)
        rows += len(table)
    config = read_info(teacher).architecture
    return tokens * token_operations(config, tokens // max(1, rows), backward=0)


TEACHER_WORK: dict[str, Callable[[Path, Recipe, Path, str], float]] = {"answering": _answering, "scoring": _scoring}
"""What a teacher does before a stage is trained, the same for all seeds of an arm."""


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distill", "evaluation"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"spread": _spread}
    return environment


def _spread(found: dict[str, float] | None, digits: int = 3, percent: bool = False) -> str:
    """0.123 (0.100 to 0.146), or a dash."""
    if found is None:
        return "–"
    values = [found[name] for name in ("mean", "low", "high") if found[name] is not None]
    mean, *ends = (f"{100 * value:.1f} %" if percent else f"{value:.{digits}f}" for value in values)
    return f"{mean} ({' to '.join(ends)})" if ends else mean
