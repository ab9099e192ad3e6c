"""What all chapters share: the recipe, paths, wildcards, and the look-ups of their rules."""

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
from distill.config import load_recipe
from distill.errors import DistillError
from distill.files import digest, read_json
from distill.inputs import dataset_files, is_params, model_files, tokenizer_files
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
        files = {"prompts": prompt_sources(recipe.prompts)}
        files["evaluation"] = dataset_files(recipe.evaluation, "evaluation") if recipe.evaluation else []
        for name, stage in recipe.stages.items():
            parts = [part for part in stage.data if part.published]
            files[f"stages.{name}"] = [file for part in parts for file in dataset_files(part, f"stages.{name}.data")]
        for name, model in recipe.models.items():
            files[name] = model_files(model, name)
            tokenizer_files(model, name)
        return recipe, files
    except DistillError as error:
        sys.exit(f"error: {error}")


RECIPE, FILES = read_recipe_or_exit()
RUN = str(RECIPE.folder)
MODELS = {f"{name}-{model.id8}": name for name, model in RECIPE.models.items()}
SCORED = [RECIPE.teacher, RECIPE.student, *RECIPE.stages] if RECIPE.evaluation else []


pathvars:
    run=RUN,
    models=str(RECIPE.results / "models"),
    logs=f"{RUN}/logs",
    benchmarks=f"{RUN}/benchmarks",


wildcard_constraints:
    batch=r"\d+",
    model="|".join(map(re.escape, MODELS)),
    stage="|".join(map(re.escape, RECIPE.stages)),
    scored="|".join(map(re.escape, [*RECIPE.models, *RECIPE.stages])),
    where="|".join(map(re.escape, RECIPE.publish.targets)),


def code(rule, *others):
    """The digest of a rule's script, of `others` it runs, and of what they import.

    With `code: pinned`, what was made keeps its own.
    """
    now = f"code:{'-'.join(closure.digest(Path(SCRIPTS, f'{name}.py')) for name in (rule, *others))}"
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
    """The recipe as the page tells it: where results are sent, and on what a run runs, changes no page."""
    return RECIPE.model_dump_json(exclude_defaults=True, exclude={"publish", "resources"})


# What a cluster is asked for -----------------------------------------------------------------------------------


def needs(what):
    """Resources of a rule as executors know them, from the recipe's `resources`.

    A group of jobs has its integers added up, so what the jobs of a group share is a string: the accelerators
    behind the server that batches ask, and their memory.
    """
    need = getattr(RECIPE.resources, what)
    asked = {"runtime": lambda wildcards, attempt: attempt * need.minutes}
    if need.cpus > 1:
        asked["cpus_per_task"] = need.cpus
    if need.accelerators:
        asked["gres"] = f"{need.kind}:{need.accelerators}"
    if need.accelerators and need.kind.startswith("gpu") and what == "generate":
        asked["slurm_extra"] = f"--mem-per-gpu={-(-1000 * need.memory_gb // need.accelerators)}M"
        asked["mem_mb"] = lambda wildcards: 0 if by_slurm() else 1000 * need.memory_gb
    else:
        asked["mem_mb"] = 1000 * need.memory_gb
    return asked


def by_slurm():
    """Whether the plugin for SLURM runs the jobs, which is known only once the rules are read."""
    return workflow.executor_plugin is not None and workflow.executor_plugin.name == "slurm"


def together():
    """Resources of processes that train as one; SLURM starts them, where it is there.

    `mpi` has the plugin leave that to the rule. On another node Snakemake's process id is nobody's, so that a task
    does not watch it: SLURM ends them all.
    """
    need = RECIPE.resources.train
    if need.tasks == 1:
        return {"srun": ""}
    start = f"srun --ntasks={need.tasks} --nodes={need.nodes} --cpus-per-task={need.cpus} env --unset=DISTILL_PARENT"
    return {"mpi": "srun", "tasks": need.tasks, "nodes": need.nodes, "tasks_per_gpu": 0, "srun": start}


# Models and students ------------------------------------------------------------------------------------------


def model_of(wildcards):
    return RECIPE.models[MODELS[wildcards.model]]


def model_settings(wildcards):
    return settings(model_of(wildcards))


def params_of(name):
    """The params folder of a model or a stage."""
    if name in RECIPE.stages:
        return f"{RUN}/students/{name}/params"
    model = RECIPE.models[name]
    if model.local and is_params(model.local):
        return str(model.local)
    return f"{RECIPE.results}/models/{name}-{model.id8}/params"


def source_of(wildcards):
    """The Hugging Face folder that a model is imported from."""
    return str(model_of(wildcards).local or f"{RECIPE.results}/models/{wildcards.model}/source")


def source_folder(name):
    """The folder that a model came in, where its license is to be found."""
    model = RECIPE.models[name]
    return str(model.local or f"{RECIPE.results}/models/{name}-{model.id8}/source")


def model_sources(wildcards):
    """{model: that folder}, as JSON for a script."""
    return json.dumps({name: source_folder(name) for name in RECIPE.models})


def tokenizer_of(wildcards):
    """The folder that its tokenizer comes from."""
    own = model_of(wildcards).tokenizer is not None
    return f"{RECIPE.results}/models/{wildcards.model}/tokenizer" if own else source_of(wildcards)


def source_files(wildcards):
    """What an import reads: the files of a local folder one by one, a download as a whole."""
    files = FILES[MODELS[wildcards.model]] or [source_of(wildcards)]
    return [*files, tokenizer_of(wildcards)] if model_of(wildcards).tokenizer else files


def override_files(wildcards):
    """The files of a tokenizer that has a local folder of its own."""
    return tokenizer_files(model_of(wildcards), MODELS[wildcards.model])


def reference_of(wildcards):
    """The logits that a model is compared with: a file beside its weights, or one made by transformers."""
    beside = Path(source_of(wildcards), "reference.npz")
    return str(beside) if beside.is_file() else f"{RECIPE.results}/models/{wildcards.model}/reference.npz"


def parity_files(wildcards):
    """A report for each model that has a reference or can be given one; the others are named."""
    wanted = []
    for model, name in MODELS.items():
        folder = RECIPE.models[name].local
        if folder and is_params(folder):
            print(f"parity: {name} is left out, it is a params folder and no checkpoint", file=sys.stderr)
        elif find_spec("torch") or (folder and (folder / "reference.npz").is_file()):
            wanted.append(f"{RECIPE.results}/models/{model}/parity.json")
        else:
            print(
                f"parity: {name} is left out, it has no reference.npz beside its weights, and torch is not installed",
                file=sys.stderr,
            )
    return wanted


# Batches ------------------------------------------------------------------------------------------------------


@cache
def read_index(path, mtime):
    return read_json(path)["batches"]


def index_file(wildcards):
    """`prompts/index.json`; what asks for it is looked at again once the checkpoint has run."""
    return checkpoints.index_prompts.get().output[0]


def batches(wildcards):
    """{batch: hash and counts} of the index."""
    path = Path(index_file(wildcards))
    return read_index(path, path.stat().st_mtime_ns)


def rows(wildcards):
    """The hash of a batch's rows: what a batch's jobs depend on, rather than the index's date."""
    return batches(wildcards).get(wildcards.batch, {}).get("hash", "no such batch")


def counts(wildcards):
    """One hash of all that the ledger takes from the index."""
    return digest(batches(wildcards))


def index_digest(wildcards):
    """One hash of the whole index."""
    return digest(read_json(index_file(wildcards)))


def prompt_files(wildcards):
    return [f"{RUN}/prompts/{batch}.jsonl" for batch in batches(wildcards)]


def completion_files(wildcards):
    return [f"{RUN}/completions/{batch}.parquet" for batch in batches(wildcards)]


# Stages and scores --------------------------------------------------------------------------------------------


def from_prompts(stage):
    """Whether a stage, or one that it builds on, learns what comes of the recipe's prompts."""
    return any(not part.published for name in RECIPE.lineage(stage) for part in RECIPE.stages[name].data)


def once_indexed(paths):
    """An input function that gives `paths` when the index is there, and asks for the index until then.

    Snakemake decides anew what is stale when a checkpoint has run, but for those jobs only whose inputs asked for
    it. All that comes after the prompts asks, or an index that came out as it was would train the student again.
    """

    def wait(wildcards):
        index_file(wildcards)
        return paths(wildcards) if callable(paths) else paths

    return wait


def stage_settings(wildcards):
    return settings(RECIPE.stages[wildcards.stage])


def init_of(wildcards):
    return params_of(RECIPE.stages[wildcards.stage].init)


def training_data(wildcards):
    """What the run itself makes of a stage's data: the dataset's folder, the prompts with the original answers."""
    if not from_prompts(wildcards.stage):
        return []
    index_file(wildcards)  # see `once_indexed`
    sources = {part.source for part in RECIPE.stages[wildcards.stage].data}
    dataset = [f"{RUN}/dataset"] if "generated" in sources else []
    return dataset + (prompt_files(wildcards) if "original" in sources else [])


def published_files(wildcards):
    """The local files among a stage's data."""
    return FILES[f"stages.{wildcards.stage}"]


def scored_params(wildcards):
    """What is evaluated; a model need not wait for the index, a stage does."""
    name = wildcards.scored
    return once_indexed(params_of(name)) if name in RECIPE.stages else params_of(name)


def length_of(wildcards):
    """The longest example that a stage trains on, in tokens."""
    return RECIPE.stages[wildcards.stage].max_length or RECIPE.generation.max_target_length


def answer_length(wildcards):
    """The most tokens that a held-out prompt and its answer may have."""
    return RECIPE.evaluation.max_target_length or RECIPE.generation.max_target_length


# Publication --------------------------------------------------------------------------------------------------


def publications():
    """The records of all places in the recipe, and of what is removed thereafter."""
    names = [*RECIPE.publish.targets, *(["removed"] if RECIPE.publish.remove_local else [])]
    return [f"{RUN}/published/{name}.json" for name in names]


def kept_completions(wildcards):
    """Those that a whole run leaves; one that removes them must not list them, or they would be made again."""
    return [] if RECIPE.publish.remove_local else completion_files(wildcards)


def published_folder(wildcards):
    """What a place is sent: the dataset, or a student's export."""
    what = RECIPE.publish.targets[wildcards.where].what
    return f"{RUN}/dataset" if what == "dataset" else f"{RUN}/export/{what}"


def publication_settings(wildcards):
    """What the place and its card tell of the recipe, and nothing that would publish again for no reason."""
    unused = {"code", "results", "generation", "dataset", "evaluation", "report", "resources"}
    one = {"targets": {wildcards.where: RECIPE.publish.targets[wildcards.where]}}
    publish = RECIPE.publish.model_copy(update={"when": "asked", "remove_local": False, **one})
    return RECIPE.model_copy(update={"publish": publish}).model_dump_json(exclude_defaults=True, exclude=unused)
