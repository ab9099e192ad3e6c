"""Publication: only when `publish` is asked for by name, or the recipe says `publish.when: all`.

in:  dataset/ or export/{stage}/, as each of the recipe's `publish.targets` says
out: published/{where}.json, the record of what lies where
"""


rule publish_to:
    input:
        once_indexed(published_folder),
    output:
        "<run>/published/{where}.json",
    params:
        recipe=publication_settings,
        code=code("publish_to"),
    log:
        "<logs>/publish_to/{where}.log",
    benchmark:
        "<benchmarks>/publish_to/{where}.tsv"
    threads: 1
    message:
        "publish to {wildcards.where}"
    shell:
        '"$PYTHON" "$SCRIPTS"/publish_to.py'
        " --folder {input:q}"
        " --recipe {params.recipe:q}"
        " --where {wildcards.where:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
