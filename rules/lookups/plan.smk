"""What a plan looks at."""


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
