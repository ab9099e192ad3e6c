"""Stages, their data, and what is scored."""


def from_prompts(stage):
    """Whether a stage, or one that it builds on, learns what comes of the recipe's prompts."""
    return any(not part.published for name in RECIPE.lineage(stage) for part in RECIPE.stages[name].data)


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
