"""Models: where they come from, where their params are, what they are made of."""


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
