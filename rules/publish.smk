"""Publication: only when `publish` is asked for by name, or the recipe says `publish.when: all`.

in:  dataset/ or export/{stage}/, as each of the recipe's `publish.targets` says
out: published/{where}.json, the record of what lies where
     published/removed.json, with `publish.remove_local`: completions/ are gone, and are not made again for it
"""


rule publish_to:
    input:
        once_indexed(published_folder),
    output:
        "<run>/published/{where}.json",
    params:
        recipe=publication_settings,
        sources=model_sources,
        code=code("publish_to"),
    log:
        "<logs>/publish_to/{where}.log",
    benchmark:
        "<benchmarks>/publish_to/{where}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "publish to {wildcards.where}"
    shell:
        '"$PYTHON" "$SCRIPTS"/publish_to.py'
        " --folder {input:q}"
        " --recipe {params.recipe:q}"
        " --where {wildcards.where:q}"
        " --sources {params.sources:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule remove_completions:
    input:
        records=[f"{RUN}/published/{where}.json" for where in RECIPE.publish.targets],
        dataset="<run>/dataset",
        report="<run>/report.html",
        check="<run>/logits/check.json" if SOFT else [],
        evidence="<run>/evidence" if RECIPE.comparison else [],
    output:
        "<run>/published/removed.json",
    params:
        completions=f"{RUN}/completions",
        work=f"{RUN}/work/samples",
    log:
        "<logs>/remove_completions.log",
    benchmark:
        "<benchmarks>/remove_completions.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "remove the completions"
    shell:
        '"$PYTHON" "$SCRIPTS"/remove_completions.py'
        " --dataset {input.dataset:q}"
        " --completions {params.completions:q}"
        " --work {params.work:q}"
        " --out {output:q}"
        " {input.records:q}"
        " 2>&1 | tee -i {log:q} >&2"
