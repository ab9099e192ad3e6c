"""`report.html`: one self-contained page that shows what a run did, every number beside its file."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distill.config.recipe import Recipe
from distill.evaluation import plots, readings
from distill.evaluation.readings import Run, Scored
from distill.files import read_json, replacing

SCORE_NAMES = {"exact_match": "exact match", "nll": "NLL"}
GAPS = {"exact_match": "gap_recovered", "nll": "gap_recovered_nll"}


def write_report(run_folder: Path, recipe: Recipe, out: Path) -> None:
    """Render a run's folder as one HTML page: no script, no outside address, equal input gives equal bytes.

    A recipe without an evaluation gives a page that says so. A file that the recipe promises and that is not
    there is a `DistillError`.
    """
    page = _environment().get_template("report.html.j2").render(_facts(Run(Path(run_folder), recipe)))
    with replacing(out) as tmp:
        tmp.write_text(page, encoding="utf-8")


def _facts(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    summary = read_json(run.file("summary.json")) if recipe.evaluation else None
    models = readings.scored(run, summary) if summary else []
    ledger = readings.ledger(run) if recipe.prompts else None
    lengths = readings.lengths(run, list(ledger["batches"])) if ledger else None
    pair = readings.compatibility(run) if recipe.teacher else None
    index = run.file("prompts", "index.json")
    return {
        "recipe": recipe,
        "title": recipe.report.title or " → ".join(filter(None, (recipe.teacher, recipe.student))),
        "summary": summary,
        "summary_source": run.label("summary.json"),
        "models": models,
        "headline": _headline(recipe, models),
        "score_plots": _score_plots(models),
        "stages": [_with_plot(stage) for stage in readings.stages(run)],
        "ledger": ledger,
        "published": dict.fromkeys(part.source for stage in recipe.stages.values() for part in stage.data),
        "lengths": lengths,
        "length_plot": Markup(plots.lengths("lengths", lengths["tokens"])) if lengths else None,
        "samples": readings.samples(run, models),
        "compatibility": pair,
        "parameters": _parameters(pair),
        "prompts": read_json(index).get("source") if recipe.prompts and index.exists() else None,
        "prompts_source": run.label("prompts", "index.json"),
        "disk": readings.disk(run),
        "recipe_yaml": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "recipe_source": run.label("recipe.yaml"),
    }


def _headline(recipe: Recipe, models: list[Scored]) -> dict[str, Any] | None:
    """Teacher, if there is one, student before and the last stage, on the first score that they all have."""
    by_name = {model.name: model for model in models}
    last = next((by_name[name] for name in reversed(recipe.stages) if name in by_name), None)
    sides = [by_name.get(name) for name in (recipe.teacher, recipe.student) if name] + [last]
    if None in sides:
        return None
    for score, name in SCORE_NAMES.items():
        if all(model.found.get(score) is not None for model in sides):
            return {"score": score, "name": name, "models": sides, "gap": last.gaps.get(GAPS[score]),
                    "reason": last.gaps.get("reason")}  # fmt: skip
    return None


def _parameters(pair: dict[str, Any] | None) -> dict[str, int]:
    """Parameters by role, where the compatibility file counts them; training changes no shape."""
    counts = {key: values for key, *values in pair["facts"]}.get("parameters") if pair else None
    return dict(zip(("teacher", "before", "after"), (*counts, counts[-1]), strict=True)) if counts else {}


def _score_plots(models: list[Scored]) -> list[dict[str, Any]]:
    drawn = []
    for score, name in SCORE_NAMES.items():
        rows = [
            plots.Score(model.label, model.role, model.found[score],
                        *((model.low, model.high) if score == "exact_match" else ()))
            for model in models if model.found.get(score) is not None
        ]  # fmt: skip
        if rows:
            svg = plots.scores(name.replace(" ", "-").lower(), rows, percent=score == "exact_match")
            drawn.append({"score": score, "name": name, "svg": Markup(svg)})
    return drawn


def _with_plot(stage: dict[str, Any]) -> dict[str, Any]:
    if len(stage["rows"]) < 2:
        return {**stage, "svg": None, "smoothing": ""}
    columns = [[row[key] for row in stage["rows"]] for key in ("step", "loss", "learning_rate")]
    svg, smoothing = plots.loss(f"loss-{stage['name']}", *columns)
    return {**stage, "svg": Markup(svg), "smoothing": smoothing}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distill", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "count": _count, "nats": _nats, "duration": _duration,
                            "plainly": _plainly, "megabytes": _megabytes}  # fmt: skip
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _plainly(value: Any) -> str:
    """A JSON value in a table's cell: no braces, no quotes; a digest shortened."""
    if value is None or value in ([], {}, ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plainly(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_plainly(part) for part in value)
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return f"{text[:12]}…" if len(text) >= 40 and all(letter in "0123456789abcdef" for letter in text) else text
