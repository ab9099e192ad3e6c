"""Teacher answers.

in:  the teacher's params/, prompts/{batch}.jsonl
out: completions/{batch}.parquet; journals and the server that batches share are undeclared
"""


rule generate:
    input:
        teacher=params_of(RECIPE.teacher),
        prompts="<run>/prompts/{batch}.jsonl",
    output:
        "<run>/completions/{batch}.parquet",
    params:
        generation=generation_settings,
        template=RECIPE.prompts.chat_template,
        work=f"{RUN}/work/samples",
        code=code("generate", "serve"),
    log:
        "<logs>/generate/{batch}.log",
    benchmark:
        "<benchmarks>/generate/{batch}.tsv"
    threads: cpus("generate")
    resources:
        **needs("generate"),
        accelerator=1,
        idle_seconds=RECIPE.generation.idle_seconds,
        kept=kept_at("samples"),
    message:
        "generate {wildcards.batch}"
    shell:
        '"$PYTHON" "$SCRIPTS"/generate.py'
        " --teacher {input.teacher:q}"
        " --prompts {input.prompts:q}"
        " --generation {params.generation:q}"
        " --template {params.template}"
        " --work {params.work:q}"
        " {resources.kept:q}"
        " --idle-seconds {resources.idle_seconds}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
