"""What a cluster is asked for."""


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
    # A progress bar has no line's end: without --unbuffered it comes to the log some kilobytes late.
    start = f"srun --unbuffered --ntasks={need.tasks} --nodes={need.nodes} --cpus-per-task={need.cpus}"
    return {
        "mpi": "srun",
        "tasks": need.tasks,
        "nodes": need.nodes,
        "tasks_per_gpu": 0,
        "srun": f"{start} env --unset=DISTILL_PARENT",
    }
