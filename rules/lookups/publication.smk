"""What is published, and what stays."""


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
