"""Contents page: the recipe, the chapters, and what can be asked for by name."""

if not workflow.configfiles:  # a recipe given with --configfile stands alone

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/storage.smk"
include: "rules/hooks.smk"
include: "rules/lookups/resources.smk"
include: "rules/lookups/models.smk"
include: "rules/lookups/batches.smk"
include: "rules/lookups/stages.smk"
include: "rules/lookups/logits.smk"
include: "rules/lookups/parity.smk"
include: "rules/lookups/plan.smk"
include: "rules/lookups/publication.smk"
include: "rules/models.smk"


if RECIPE.teacher:

    include: "rules/pair.smk"
    include: "rules/logits.smk"
    include: "rules/evidence.smk"


if RECIPE.prompts:

    include: "rules/prompts.smk"
    include: "rules/generate.smk" if RECIPE.dataset.completions == "generated" else "rules/completions.smk"
    include: "rules/dataset.smk"


include: "rules/train.smk"
include: "rules/export.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/plan.smk"
include: "rules/parity.smk"
include: "rules/publish.smk"


rule all:
    default_target: True
    input:
        import_records(),
        "<run>/compatibility.json" if RECIPE.teacher else [],
        prompt_files,
        kept_completions,
        "<run>/dataset" if RECIPE.prompts else [],
        "<run>/logits/check.json" if SOFT else [],
        expand("<run>/students/{stage}/params", stage=RECIPE.stages),
        expand("<run>/export/{stage}", stage=RECIPE.stages),
        expand("<run>/evaluation/{name}.json", name=SCORED),
        "<run>/summary.json" if SCORED else [],
        "<run>/report.html",
        "<run>/evidence" if RECIPE.comparison else [],
        publications() if RECIPE.publish.when == "all" else [],
    message:
        "all is there"


rule prompts:
    input:
        prompt_files,
    message:
        "prompts are there" if RECIPE.prompts else "the recipe has no prompts"


rule completions:
    input:
        completion_files,
    message:
        "completions are there" if RECIPE.prompts else "the recipe has no prompts to be completed"


rule dataset:
    input:
        "<run>/dataset" if RECIPE.prompts else [],
    message:
        "the dataset is there" if RECIPE.prompts else "the recipe has no prompts to make a dataset of"


rule logits:
    input:
        all_logits,
        "<run>/logits/check.json" if SOFT else [],
    message:
        "logits are there" if SOFT else "no stage has objective topk_logits"


rule students:
    input:
        expand("<run>/students/{stage}/params", stage=RECIPE.stages),
    message:
        "students are there"


rule export:
    input:
        expand("<run>/export/{stage}", stage=RECIPE.stages),
    message:
        "exports are there"


rule publish:
    input:
        publications(),
    message:
        "publications are there" if RECIPE.publish.targets else "the recipe names no place in publish.targets"


onstart:
    keep_recipe()


onsuccess:
    leave_servers()
    print_outcome()


onerror:
    leave_servers()
    print_errors()
