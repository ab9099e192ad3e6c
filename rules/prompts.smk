"""Prompts.

in:  the recipe's dataset, and the teacher's tokenizer
out: prompts/index.json with the hash of each batch's rows, prompts/{batch}.jsonl

The checkpoint reads and tokenizes everything once, into its work folder. A batch's own job copies its rows out
and depends on their hash alone, so that one more batch or an appended dataset leaves the old batches as they were.
"""


checkpoint index_prompts:
    input:
        data=shipped(FILES["prompts"]),
        teacher=params_of(RECIPE.reader),
    output:
        "<run>/prompts/index.json",
    params:
        **contents(FILES["prompts"]),
        prompts=settings(RECIPE.prompts),
        max_prefill_length=RECIPE.generation.max_prefill_length,
        work=prompt_rows(),
        code=code("index_prompts"),
    log:
        "<logs>/index_prompts.log",
    benchmark:
        "<benchmarks>/index_prompts.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "read and tokenize the prompts"
    shell:
        '"$PYTHON" "$SCRIPTS"/index_prompts.py'
        " --teacher {input.teacher:q}"
        " --prompts {params.prompts:q}"
        " --max-prefill-length {params.max_prefill_length}"
        " --work {params.work:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule prepare_prompts:
    input:
        index=ancient(index_file),
    output:
        "<run>/prompts/{batch}.jsonl",
    params:
        rows=rows,
        work=prompt_rows(),
    log:
        "<logs>/prepare_prompts/{batch}.log",
    benchmark:
        "<benchmarks>/prepare_prompts/{batch}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "prompts {wildcards.batch}"
    shell:
        '"$PYTHON" "$SCRIPTS"/prepare_prompts.py'
        " --index {input.index:q}"
        " --batch {wildcards.batch}"
        " --work {params.work:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
