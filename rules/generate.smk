"""Teacher answers.

in:  the teacher's params/, prompts/{batch}.jsonl
out: completions/{batch}.parquet
"""


rule generate:
    input:
        teacher=params_of(RECIPE.teacher),
        prompts="<run>/prompts/{batch}.jsonl",
    output:
        "<run>/completions/{batch}.parquet",
    params:
        generation=settings(RECIPE.generation),
        code=code("generate"),
    log:
        "<logs>/generate/{batch}.log",
    benchmark:
        "<benchmarks>/generate/{batch}.tsv"
    threads: 1
    resources:
        accelerator=1,
    message:
        "generate {wildcards.batch}"
    shell:
        '"$PYTHON" "$SCRIPTS"/generate.py'
        " --teacher {input.teacher:q}"
        " --prompts {input.prompts:q}"
        " --generation {params.generation:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
