"""Students.

in:  params/ of the stage's init and of a teacher that it asks, its data: dataset/, prompts/{batch}.jsonl with the
     original answers, published sets; files with stored logits
out: students/{stage}/params/, final.json, metrics.jsonl; steps/ beside them is the loop's own
"""


rule train:
    input:
        init=init_of,
        teacher=asked_teacher,
        told=stored_logits,
        told_by=told_by,
        data=training_data,
        published=published_files,
        evaluation=held_out_files,
    output:
        params=directory("<run>/students/{stage}/params"),
        final="<run>/students/{stage}/final.json",
        metrics="<run>/students/{stage}/metrics.jsonl",
    params:
        **contents(lambda w: FILES[f"stages.{w.stage}"]),
        folder=lambda w, output: Path(output.params).parent,
        stage=stage_settings,
        teacher=lambda w, input: [f"--teacher={path}" for path in input.teacher],
        told=lambda w, input: [f"--told={path}" for path in input.told],
        told_by=lambda w, input: [f"--told-by={path}" for path in input.told_by],
        evaluation=held_out_flag,
        template=RECIPE.chat_template,
        max_length=length_of,
        code=code("train"),
    log:
        "<logs>/train/{stage}.log",
    benchmark:
        "<benchmarks>/train/{stage}.tsv"
    threads: cpus("train")
    resources:
        **needs("train"),
        **together(),
        kept=kept_at("students"),
        accelerator=DEVICE,
    message:
        "train {wildcards.stage}"
    shell:
        '"$PYTHON" "$SCRIPTS/leave_server.py" && ${{SLURM_JOB_ID:+{resources.srun}}} "$PYTHON" "$SCRIPTS"/train.py'
        " --init {input.init:q}"
        " {params.teacher:q}"
        " {params.told_by:q}"
        " {params.told:q}"
        " --stage {params.stage:q}"
        " {params.evaluation:q}"
        " --name {wildcards.stage:q}"
        " --template {params.template}"
        " --max-length {params.max_length}"
        " --folder {params.folder:q}"
        " {resources.kept:q}"
        " {input.data:q}"
        " 2>&1 | tee -i {log:q} >&2"
