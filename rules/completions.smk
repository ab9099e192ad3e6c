"""Completions that came with the prompts (`dataset.completions: own`), in place of the teacher's.

in:  prompts/{batch}.jsonl
out: completions/{batch}.parquet
"""


rule take_completions:
    input:
        teacher=params_of(RECIPE.reader),
        prompts="<run>/prompts/{batch}.jsonl",
    output:
        "<run>/completions/{batch}.parquet",
    params:
        code=code("take_completions"),
    log:
        "<logs>/take_completions/{batch}.log",
    benchmark:
        "<benchmarks>/take_completions/{batch}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "take completions {wildcards.batch}"
    shell:
        '"$PYTHON" "$SCRIPTS"/take_completions.py'
        " --teacher {input.teacher:q}"
        " --prompts {input.prompts:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
