"""The teacher's logits, stored."""

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
