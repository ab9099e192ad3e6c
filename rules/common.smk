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


DIGESTS = closure.digests(Path(SCRIPTS), Path(".snakemake/code.json"))


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


# What a cluster is asked for -----------------------------------------------------------------------------------


def needs(what):
    """Resources of a rule as executors know them, from the recipe's `resources`.

    A group of jobs has its integers added up, so what the jobs of a group share is a string: the accelerators
    behind the server that batches ask, and their memory. A pod's accelerators are limits too (`scale` 0), or an API
    server refuses it.
    """
    need = getattr(RECIPE.resources, what)
    asked = {"runtime": lambda wildcards, attempt: attempt * need.minutes}
    if need.cpus > 1:
        asked["cpus_per_task"] = need.cpus
    if need.accelerators and STORED:
        asked |= {"gpu": str(need.accelerators), "gpu_manufacturer": need.manufacturer, "scale": 0}
    if need.accelerators:
        asked["gres"] = f"{need.kind}:{need.accelerators}"
    if need.accelerators and need.kind.startswith("gpu") and what == "generate":
        asked["slurm_extra"] = f"--mem-per-gpu={-(-1000 * need.memory_gb // need.accelerators)}M"
        asked["mem_mb"] = lambda wildcards: 0 if by_slurm() else 1000 * need.memory_gb
    else:
        asked["mem_mb"] = 1000 * need.memory_gb
    return asked


def cpus(what):
    """Threads of a rule: pods are given them. Elsewhere `cpus_per_task` says it, and all of them take part anyway."""
    return getattr(RECIPE.resources, what).cpus if STORED else 1


def kept_at(what):
    """A script's flag with the place where unfinished work is kept: a resource, since no result depends on it."""
    return f"--kept={RECIPE.storage.work}/{RECIPE.run}/{what}" if RECIPE.storage.work else ""


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
    return f"{RECIPE.results}/models/{name}-{RECIPE.id8(name)}/params"


def derived_of(wildcards):
    return RECIPE.models[MODELS[wildcards.derived]]


def derived_settings(wildcards):
    return settings(derived_of(wildcards))


def parent_of(wildcards):
    """The params folder that a derived model is made of."""
    return params_of(derived_of(wildcards).derive.parent)


def judged_on(wildcards):
    """The local files of the prompts that heads and neurons of a derived model are judged on."""
    return shipped(FILES["prompts"]) if derived_of(wildcards).derive.narrows else []


def judging_prompts(wildcards):
    """The same prompts as a flag of the script."""
    flag = [f"--prompts={RECIPE.prompts.model_dump_json(exclude_defaults=True)}"]
    return flag if derived_of(wildcards).derive.narrows else []


def import_records():
    """A file for each model that is imported or derived.

    A job that fails takes its old outputs with it, and the next run misses none that nobody lists: it would say
    that all is there. The weights are not listed, since they may be deleted once all is made of them.
    """
    used = {RECIPE.reader, RECIPE.student, *(stage.init for stage in RECIPE.stages.values())}
    folders = [Path(params_of(name)).parent for name in RECIPE.models if name in used]
    return [f"{folder}/imported.json" for folder in folders if folder.name in MODELS]


def downloaded(wildcards, what):
    """The folder that a model's `source` or `tokenizer` is downloaded into."""
    return f"{RECIPE.results}/models/{wildcards.model}/{what}"


def source_of(wildcards):
    """The Hugging Face folder that a model is imported from."""
    return str(model_of(wildcards).local or here(downloaded(wildcards, "source")))


def source_folder(name):
    """The folder that a model came in, where its license is to be found."""
    model = RECIPE.models[name]
    if model.derive:
        return source_folder(model.derive.parent)
    return str(model.local or f"{RECIPE.results}/models/{name}-{RECIPE.id8(name)}/source")


def model_sources(wildcards):
    """{model: that folder}, as JSON for a script."""
    return json.dumps({name: source_folder(name) for name in RECIPE.models})


def tokenizer_of(wildcards):
    """The folder that its tokenizer comes from."""
    own = model_of(wildcards).tokenizer is not None
    return here(downloaded(wildcards, "tokenizer")) if own else source_of(wildcards)


def source_files(wildcards):
    """What an import reads: the files of a local folder one by one, a download as a whole."""
    model, name = model_of(wildcards), MODELS[wildcards.model]
    files = shipped(FILES[name]) if model.local else [downloaded(wildcards, "source")]
    files = [*files, *shipped(template_files(model, name))]
    return [*files, downloaded(wildcards, "tokenizer")] if model.tokenizer else files


def override_files(wildcards):
    """The files of a tokenizer that has a local folder of its own."""
    return shipped(tokenizer_files(model_of(wildcards), MODELS[wildcards.model]))


def reference_of(wildcards):
    """The logits that a model is compared with: a file beside its weights, or one made by transformers."""
    beside = Path(source_of(wildcards), "reference.npz")
    return str(beside) if beside.is_file() else f"{RECIPE.results}/models/{wildcards.model}/reference.npz"


def parity_files(wildcards):
    """A report for each model that has a reference or can be given one; the others are named."""
    wanted = []
    for model, name in MODELS.items():
        folder = RECIPE.models[name].local
        if model in DERIVED:
            print(f"parity: {name} is left out, it is made of {RECIPE.models[name].derive.parent}", file=sys.stderr)
        elif folder and is_params(folder):
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


def index_file(wildcards):
    """`prompts/index.json`, if there are prompts; what asks for it is looked at again once the checkpoint has run."""
    return checkpoints.index_prompts.get().output[0] if RECIPE.prompts else []


def index(wildcards):
    """What the index holds."""
    file = index_file(wildcards)
    path = Path(file)
    away = STORED and (workflow.is_main_process or not path.exists())  # a copy may be a killed run's
    return fetched(file, None if away else path.stat().st_mtime_ns)


def batches(wildcards):
    """{batch: hash and counts} of the index."""
    return index(wildcards)["batches"]


def rows(wildcards):
    """The hash of a batch's rows: what a batch's jobs depend on, rather than the index's date."""
    return batches(wildcards).get(wildcards.batch, {}).get("hash", "no such batch")


def counts(wildcards):
    """One hash of all that the ledger takes from the index."""
    return digest(batches(wildcards))


def index_digest(wildcards):
    """One hash of the whole index; nothing for a recipe without prompts."""
    return digest(index(wildcards)) if RECIPE.prompts else []


def prompt_files(wildcards):
    return [f"{RUN}/prompts/{batch}.jsonl" for batch in batches(wildcards)] if RECIPE.prompts else []


def completion_files(wildcards):
    return [f"{RUN}/completions/{batch}.parquet" for batch in batches(wildcards)] if RECIPE.prompts else []


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


def asked_teacher(wildcards):
    """The model that an objective asks for its logits while the stage trains."""
    teacher = RECIPE.teacher_of(wildcards.stage)
    return [params_of(teacher)] if teacher else []


def soft_objectives():
    """What the recipe's teacher and student must be open to: a stage's other pairs are compared when it trains."""
    pairs = {name: (RECIPE.teacher_of(name), RECIPE.stages[RECIPE.lineage(name)[-1]].init) for name in RECIPE.stages}
    ours = [name for name, pair in pairs.items() if pair == (RECIPE.teacher, RECIPE.student)]
    return [f"--objective={name}={RECIPE.stages[name].objective}" for name in ours]


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
    return shipped(FILES[f"stages.{wildcards.stage}"])


def held_out_files(wildcards):
    """The recipe's evaluation, where a stage is asked for it while it trains."""
    return shipped(FILES["evaluation"]) if RECIPE.stages[wildcards.stage].held_out == "evaluation" else []


def held_out_flag(wildcards):
    asked = RECIPE.stages[wildcards.stage].held_out == "evaluation"
    return [f"--evaluation={RECIPE.evaluation.model_dump_json(exclude_defaults=True)}"] if asked else []


# Stored logits -------------------------------------------------------------------------------------------------

SOFT = [name for name, stage in RECIPE.stages.items() if stage.objective == "topk_logits"]
PUBLISHED = {part.id8: (name, part) for name in SOFT for part in RECIPE.stages[name].data if part.published}


def logits_of(stage):
    """The files with the logits that a stage reads, each source's in the order of its batches."""
    files = []
    for part in RECIPE.stages[stage].data:
        if part.published:
            files.append(f"{RUN}/logits/published-{part.id8}.parquet")
            continue
        names = batches(None) if SOFT else []
        prefix = "completions/" if RECIPE.captured(stage) else "logits/"
        prefix = "logits/original-" if part.source == "original" else prefix
        files += [f"{RUN}/{prefix}{batch}.parquet" for batch in names]
    return files


def stored_logits(wildcards):
    """Those of one stage, nothing for one that needs none."""
    return logits_of(wildcards.stage) if wildcards.stage in SOFT else []


def all_logits(wildcards):
    """Those of all stages, each once."""
    return list(dict.fromkeys(file for stage in SOFT for file in logits_of(stage)))


def told_by(wildcards):
    """The teacher whose logits a stage reads."""
    return [params_of(RECIPE.teacher)] if wildcards.stage in SOFT else []


def text_to_score(wildcards):
    """What a file of logits is made of."""
    kind, _, name = wildcards.text.rpartition("-")
    if kind == "published":
        stage, part = PUBLISHED[name]
        return shipped(dataset_files(part, f"stages.{stage}.data"))
    return f"{RUN}/prompts/{name}.jsonl" if kind == "original" else f"{RUN}/completions/{name}.parquet"


def text_flag(wildcards):
    """The same as a flag of the script."""
    kind, _, name = wildcards.text.rpartition("-")
    if kind == "published":
        return f"--part={PUBLISHED[name][1].model_dump_json(exclude_defaults=True)}"
    return f"--{'prompts' if kind == 'original' else 'completions'}={here(text_to_score(wildcards))}"


def scored_params(wildcards):
    """What is evaluated; a model need not wait for the index, a stage does."""
    name = wildcards.scored
    return once_indexed(params_of(name)) if name in RECIPE.stages else params_of(name)


def yardstick(wildcards):
    """The teacher, whom all others are compared with, if there is one."""
    return [] if RECIPE.teacher in (None, wildcards.scored) else [params_of(RECIPE.teacher)]


def length_of(wildcards):
    """The longest example that a stage trains on, in tokens."""
    return RECIPE.stages[wildcards.stage].max_length or RECIPE.generation.max_target_length


def answer_length(wildcards):
    """The most tokens that a held-out prompt and its answer may have."""
    return RECIPE.evaluation.max_target_length or RECIPE.generation.max_target_length


# Plan ---------------------------------------------------------------------------------------------------------


def config_files(wildcards):
    """{model: the file that describes it, or null}, as JSON for a script; a Hub id's may come with the recipes."""
    found = {}
    for name, model in RECIPE.models.items():
        imported = RECIPE.results / "models" / f"{name}-{RECIPE.id8(name)}"
        known = Path(workflow.basedir) / "recipes" / "models" / model.source
        file = config_file(model, [imported / "params", imported / "source", known])
        found[name] = str(file) if file else None
    return json.dumps(found)


def planned_on(wildcards):
    """One hash of all that a plan reads beside the recipe: it is looked at, and not asked for."""
    files = [*json.loads(config_files(wildcards)).values(), f"{RUN}/prompts/index.json"]
    return digest([file_digest(file) for file in files if file and Path(file).exists()])


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
    unused = {"code", "results", "generation", "evaluation", "comparison", "report", "plan", "resources", "storage"}
    if any(stage.held_out == "evaluation" for stage in RECIPE.stages.values()):
        unused.remove("evaluation")  # or the recipe is none
    one = {"targets": {wildcards.where: RECIPE.publish.targets[wildcards.where]}}
    publish = RECIPE.publish.model_copy(update={"when": "asked", "remove_local": False, **one})
    dataset = type(RECIPE.dataset)(completions="own") if RECIPE.dataset.completions == "own" else type(RECIPE.dataset)()
    told = RECIPE.model_copy(update={"publish": publish, "dataset": dataset})
    return told.model_dump_json(exclude_defaults=True, exclude=unused)
