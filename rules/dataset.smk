"""Training data.

in:  completions/{batch}.parquet of all batches
out: dataset/ with data/train-*.parquet, README.md (the card), ledger.json
"""


rule build_dataset:
    input:
        completions=completion_files,
        index=ancient(index_file),
    output:
        directory("<run>/dataset"),
    params:
        completions=here(f"{RUN}/completions"),
        dataset=settings(RECIPE.dataset),
        num_generations=RECIPE.generation.num_generations,
        run=RECIPE.run,
        teacher=settings(RECIPE.models[RECIPE.reader]),
        teacher_params=here(params_of(RECIPE.reader)),
        teacher_source=source_folder(RECIPE.reader),
        work=f"{RUN}/work/judgements",
        counts=counts,
        code=code("build_dataset"),
    log:
        "<logs>/build_dataset.log",
    benchmark:
        "<benchmarks>/build_dataset.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "build the dataset"
    shell:
        '"$PYTHON" "$SCRIPTS"/build_dataset.py'
        " --completions {params.completions:q}"
        " --index {input.index:q}"
        " --dataset {params.dataset:q}"
        " --num-generations {params.num_generations}"
        " --run {params.run:q}"
        " --teacher {params.teacher:q}"
        " --teacher-params {params.teacher_params:q}"
        " --teacher-source {params.teacher_source:q}"
        " --work {params.work:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
