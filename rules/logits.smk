"""The teacher's logits for text that is there, and their check. Those of generated text come with it, where
`generation.top_logits` or `generation.sampled_logits` ask for them.

in:  the teacher's params/; completions/{batch}.parquet, prompts/{batch}.jsonl with original answers, published sets
out: logits/{text}.parquet for what a stage with `objective: topk_logits` needs and was not captured; text is a
     batch, original-{batch} or published-{id8}
     logits/check.json: a random sample of all stored logits was computed again, and is the teacher's
"""


rule score_logits:
    input:
        teacher=params_of(RECIPE.teacher),
        text=text_to_score,
    output:
        "<run>/logits/{text}.parquet",
    params:
        text=text_flag,
        widths=[f"--{kind}={k}" for kind, k in RECIPE.scored_logits.items()],
        seed=RECIPE.generation.seed,
        max_target_length=RECIPE.generation.max_target_length,
        template=RECIPE.chat_template,
        code=code("score_logits"),
    log:
        "<logs>/score_logits/{text}.log",
    benchmark:
        "<benchmarks>/score_logits/{text}.tsv"
    threads: cpus("evaluate")
    resources:
        **needs("evaluate"),
        accelerator=DEVICE,
    message:
        "score {wildcards.text}"
    shell:
        '"$PYTHON" "$SCRIPTS/leave_server.py" && "$PYTHON" "$SCRIPTS"/score_logits.py'
        " --teacher {input.teacher:q}"
        " {params.text:q}"
        " {params.widths:q}"
        " --seed {params.seed}"
        " --max-target-length {params.max_target_length}"
        " --template {params.template}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule check_logits:
    input:
        teacher=params_of(RECIPE.teacher),
        logits=all_logits,
    output:
        "<run>/logits/check.json",
    params:
        code=code("check_logits"),
    log:
        "<logs>/check_logits.log",
    benchmark:
        "<benchmarks>/check_logits.tsv"
    threads: cpus("evaluate")
    resources:
        **needs("evaluate"),
        accelerator=DEVICE,
    message:
        "compute some logits again"
    shell:
        '"$PYTHON" "$SCRIPTS/leave_server.py" && "$PYTHON" "$SCRIPTS"/check_logits.py'
        " --teacher {input.teacher:q}"
        " --out {output:q}"
        " {input.logits:q}"
        " 2>&1 | tee -i {log:q} >&2"
