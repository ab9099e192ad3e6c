"""The model card of a student: README.md with the front matter that the Hub reads."""

from importlib.metadata import version
from typing import Any

import yaml

from distill.config.recipe import Recipe
from distill.config.stages import Stage

TEXT = """\
# {run}: {stage}

A student that learned from {answers}.

| | |
|---|---|
{origin}
| stages | {stages} |
| license | {license} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForCausalLM.from_pretrained("{place}")
```

## How to make it again

Keep the recipe that lies beside the results of the run (`recipe.yaml`), then, in a checkout of distill {version}:

```
snakemake --cores all --configfile recipe.yaml export
```
"""


def model_card(recipe: Recipe, stage: str, place: str, license: str | None, theirs: dict[str, str | None]) -> str:
    """The text of README.md of a stage's student. A license that nobody named is not guessed.

    theirs: the licenses that the cards of the models of the recipe name, by the models' names.
    """
    lineage = list(reversed(recipe.lineage(stage)))
    before = recipe.stages[lineage[0]].init
    student = recipe.models[before]
    teacher = recipe.models[recipe.teacher] if recipe.teacher else None
    front: dict[str, Any] = {"license": license} if license else {}
    front |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["distillation"]}
    origin = student
    while origin.derive is not None:
        origin = recipe.models[origin.derive.parent]
    if origin.local is None:
        front["base_model"] = origin.source
    read = recipe.prompts.sources if recipe.prompts else []
    read = [*read, *(part for name in lineage for part in recipe.stages[name].data if part.published)]
    if datasets := list(dict.fromkeys(source.source for source in read if source.local is None)):
        front["datasets"] = datasets
    rows = {"student before": f"`{student.source}`{_at(student.revision)}"}
    if teacher:
        rows["teacher"] = f"`{teacher.source}`{_at(teacher.revision)}"
    if recipe.prompts:
        rows["prompts"] = f"`{recipe.prompts.name}`"
    body = TEXT.format(
        run=recipe.run,
        version=version("distill"),
        stage=stage,
        place=place,
        answers=f"the answers of {teacher.source}" if teacher else "answers that were there",
        origin="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        stages=" → ".join(f"{name} ({_steps(recipe.stages[name])})" for name in lineage),
        license=license or _unknown(theirs.get(before), theirs.get(recipe.teacher), taught=teacher is not None),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _unknown(student: str | None, teacher: str | None, *, taught: bool) -> str:
    if not taught:
        return f"unknown: the own card of the student before says {student or 'nothing'}; see it, and that of the data"
    if not student and not teacher:
        return "unknown: see those of the student before, of the teacher and of the prompts"
    return (
        f"unknown: the own card of the student before says {student or 'nothing'}, the teacher's "
        f"{teacher or 'nothing'}; see both, and that of the prompts"
    )


def _at(revision: str | None) -> str:
    return f" at revision `{revision}`" if revision else ""


def _steps(stage: Stage) -> str:
    length = f"{stage.steps} steps" if stage.steps else f"{stage.epochs:g} epochs"
    return f"{stage.objective_in_words} on {stage.data_in_words} answers, {length}"
