"""The index's batches, the files that come of each, and waiting for the index."""


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


def once_indexed(paths):
    """An input function that gives `paths` when the index is there, and asks for the index until then.

    Snakemake decides anew what is stale when a checkpoint has run, but for those jobs only whose inputs asked for
    it. All that comes after the prompts asks, or an index that came out as it was would train the student again.
    """

    def wait(wildcards):
        index_file(wildcards)
        return paths(wildcards) if callable(paths) else paths

    return wait
