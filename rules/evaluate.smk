"""Scores on held-out prompts.

in:  params/ of teacher, student before and every stage; the recipe's held-out prompts
out: evaluation/{scored}.json, summary.json
"""


rule evaluate:
    input:
        params=scored_params,
        teacher=yardstick,
        data=shipped(FILES["evaluation"]),
    output:
        "<run>/evaluation/{scored}.json",
    params:
        **contents(FILES["evaluation"]),
        evaluation=settings(RECIPE.evaluation),
        teacher=lambda w, input: [f"--teacher={path}" for path in input.teacher],
        max_target_length=answer_length,
        template=RECIPE.chat_template,
        code=code("evaluate"),
    log:
        "<logs>/evaluate/{scored}.log",
    benchmark:
        "<benchmarks>/evaluate/{scored}.tsv"
    threads: cpus("evaluate")
    resources:
        **needs("evaluate"),
        accelerator=DEVICE,
    message:
        "evaluate {wildcards.scored}"
    shell:
        '"$PYTHON" "$SCRIPTS/leave_server.py" && "$PYTHON" "$SCRIPTS"/evaluate.py'
        " --params {input.params:q}"
        " {params.teacher:q}"
        " --name {wildcards.scored:q}"
        " --evaluation {params.evaluation:q}"
        " --max-target-length {params.max_target_length}"
        " --template {params.template}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule summarize:
    input:
        once_indexed([f"{RUN}/evaluation/{name}.json" for name in SCORED]),
    output:
        "<run>/summary.json",
    params:
        run=RECIPE.run,
        teacher=f"--teacher={RECIPE.teacher}" if RECIPE.teacher else [],
        student=RECIPE.student,
        stages=[f"--stage={stage}" for stage in RECIPE.stages],
        code=code("summarize"),
    log:
        "<logs>/summarize.log",
    benchmark:
        "<benchmarks>/summarize.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "add up the scores"
    shell:
        '"$PYTHON" "$SCRIPTS"/summarize.py'
        " --run {params.run:q}"
        " {params.teacher:q}"
        " --student {params.student:q}"
        " {params.stages:q}"
        " --out {output:q}"
        " {input:q}"
        " 2>&1 | tee -i {log:q} >&2"
