"""Students.

in:  params/ of the stage's init, its data: dataset/, prompts/{batch}.jsonl with the original answers, published sets
out: students/{stage}/params/, final.json, metrics.jsonl; steps/ beside them is the loop's own
"""


rule train:
    input:
        init=init_of,
        data=training_data,
        published=published_files,
    output:
        params=directory("<run>/students/{stage}/params"),
        final="<run>/students/{stage}/final.json",
        metrics="<run>/students/{stage}/metrics.jsonl",
    params:
        folder=lambda w, output: Path(output.params).parent,
        stage=stage_settings,
        template=RECIPE.prompts.chat_template,
        max_length=length_of,
        code=code("train"),
    log:
        "<logs>/train/{stage}.log",
    benchmark:
        "<benchmarks>/train/{stage}.tsv"
    threads: 1
    resources:
        **needs("train"),
        **together(),
        accelerator=DEVICE,
    message:
        "train {wildcards.stage}"
    shell:
        '"$PYTHON" "$SCRIPTS/leave_server.py" && ${{SLURM_JOB_ID:+{resources.srun}}} "$PYTHON" "$SCRIPTS"/train.py'
        " --init {input.init:q}"
        " --stage {params.stage:q}"
        " --name {wildcards.stage:q}"
        " --template {params.template}"
        " --max-length {params.max_length}"
        " --folder {params.folder:q}"
        " {input.data:q}"
        " 2>&1 | tee -i {log:q} >&2"
