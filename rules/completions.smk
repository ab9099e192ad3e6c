"""Completions that came with the prompts (`dataset.completions: own`), in place of the teacher's.

in:  prompts/{batch}.jsonl
out: completions/{batch}.parquet
"""

if RECIPE.dataset.completions == "own":

    ruleorder: take_completions > generate

else:

    ruleorder: generate > take_completions


rule take_completions:
    input:
        teacher=params_of(RECIPE.teacher),
        prompts="<run>/prompts/{batch}.jsonl",
    output:
        "<run>/completions/{batch}.parquet",
    params:
        code=code("take_completions"),
    log:
        "<logs>/take_completions/{batch}.log",
    benchmark:
        "<benchmarks>/take_completions/{batch}.tsv"
    threads: 1
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
