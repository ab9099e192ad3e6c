"""Arms of an experiment, side by side: for a recipe with a `comparison`.

in:  scores and curves of all stages, completions (for what the teacher's answers cost)
out: evidence/ with arms.json, README.md and its figures
"""


rule compare_arms:
    input:
        teacher=params_of(RECIPE.teacher),
        scores=once_indexed([f"{RUN}/evaluation/{name}.json" for name in SCORED]),
        curves=expand("<run>/students/{stage}/metrics.jsonl", stage=RECIPE.stages),
        completions=completion_files,
        logits=all_logits,
    output:
        directory("<run>/evidence"),
    params:
        run=lambda w, output: Path(output[0]).parent,
        recipe=told_settings,
        code=code("compare_arms"),
    log:
        "<logs>/compare_arms.log",
    benchmark:
        "<benchmarks>/compare_arms.tsv"
    threads: 1
    message:
        "compare the arms"
    shell:
        '"$PYTHON" "$SCRIPTS"/compare_arms.py'
        " --run {params.run:q}"
        " --recipe {params.recipe:q}"
        " --teacher {input.teacher:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
