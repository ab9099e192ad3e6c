"""What all chapters share: the recipe, paths, wildcards, the digests of code. What their rules look up is in lookups/."""

import json
import re
import sys

# Snakemake loads it, where it is installed, only to see whether a param is a data frame: half a second each time.
sys.modules.setdefault("pandas", None)

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from snakemake.io import IOFile

from distill import closure
from distill.config.reading import load_recipe
from distill.errors import DistillError
from distill.files import digest, file_digest, read_json
from distill.inputs import config_file, dataset_files, is_params, model_files, template_files, tokenizer_files
from distill.inputs import prompt_files as prompt_sources

PYTHON = sys.executable
SCRIPTS = str(Path(workflow.basedir) / "scripts")
# A cluster tells all processes of a job that it will be ended: the shell and its tee outlast the script, which saves.
shell.prefix(
    "set -euo pipefail; PYTHON={PYTHON:q} SCRIPTS={SCRIPTS:q}; export DISTILL_PARENT=$PPID; "
    "trap : TERM; tee() (trap '' TERM; exec tee \"$@\"); "
)
DEVICE = 64  # what a job that needs the whole accelerator asks of it; batches share it, up to 64 of them


def read_recipe_or_exit():
    """The recipe and the local files that it names; what is wrong ends Snakemake with one line."""
    try:
        recipe = load_recipe(config)
        files = {"prompts": prompt_sources(recipe.prompts) if recipe.prompts else []}
        files["evaluation"] = dataset_files(recipe.evaluation, "evaluation") if recipe.evaluation else []
        for name, stage in recipe.stages.items():
            parts = [part for part in stage.data if part.published]
            files[f"stages.{name}"] = [file for part in parts for file in dataset_files(part, f"stages.{name}.data")]
        for name, model in recipe.models.items():
            files[name] = model_files(model, name)
            tokenizer_files(model, name)
            template_files(model, name)
        return recipe, files
    except DistillError as error:
        sys.exit(f"error: {error}")


RECIPE, FILES = read_recipe_or_exit()
RUN = str(RECIPE.folder)
STORED = workflow.storage_settings.default_storage_provider
MODELS = {f"{name}-{RECIPE.id8(name)}": name for name in RECIPE.models}
DERIVED = [model for model, name in MODELS.items() if RECIPE.models[name].derive]
SCORED = [name for name in (RECIPE.teacher, RECIPE.student, *RECIPE.stages) if name] if RECIPE.evaluation else []


def one_of(models):
    """A wildcard that is one of them; one that nothing is, for none."""
    return "|".join(map(re.escape, models)) or "(?!)"


pathvars:
    run=RUN,
    models=str(RECIPE.results / "models"),
    logs=f"{RUN}/logs",
    benchmarks=f"{RUN}/benchmarks",


wildcard_constraints:
    batch=r"\d+",
    text=r"\d+|original-\d+|published-[0-9a-f]{8}",
    model=one_of(model for model in MODELS if model not in DERIVED),
    derived=one_of(DERIVED),
    stage="|".join(map(re.escape, RECIPE.stages)),
    scored="|".join(map(re.escape, [*RECIPE.models, *RECIPE.stages])),
    where="|".join(map(re.escape, RECIPE.publish.targets)),


DIGESTS = closure.digests(Path(SCRIPTS).glob("*.py"), Path(".snakemake/code.json"))


def code(rule, *others):
    """The digest of a rule's script, of `others` it runs, and of what they import.

    With `code: pinned`, what was made keeps its own.
    """
    now = f"code:{'-'.join(DIGESTS[name] for name in (rule, *others))}"
    if RECIPE.code == "tracked":
        return now

    def recorded(wildcards):
        target = IOFile(workflow.get_rule(rule).output[0].apply_wildcards(wildcards))
        known = workflow.persistence.params(target) or []
        return next((value.strip("'") for value in known if value.startswith("'code:")), now)

    return recorded


def settings(part):
    """Settings as JSON for a script; what has its default is left out, the digest of the code covers that.

    A function, since Snakemake takes the braces of a plain string for wildcards.
    """
    return lambda wildcards: part.model_dump_json(exclude_defaults=True)


def generation_settings(wildcards):
    """Without what decides how long a server waits: no answer depends on it."""
    return RECIPE.generation.model_dump_json(exclude_defaults=True, exclude={"idle_seconds"})


def told_settings(wildcards):
    """The recipe as the page tells it: where results go, on what a run runs, what was planned, changes no page."""
    return RECIPE.model_dump_json(exclude_defaults=True, exclude={"publish", "plan", "resources", "storage"})
