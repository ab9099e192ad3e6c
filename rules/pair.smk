"""What teacher and student have in common, and which objectives that opens.

in:  their params/
out: compatibility.json
"""


rule check_pair:
    input:
        teacher=params_of(RECIPE.teacher),
        student=params_of(RECIPE.student),
    output:
        "<run>/compatibility.json",
    params:
        objectives=soft_objectives(),
        code=code("check_pair"),
    log:
        "<logs>/check_pair.log",
    benchmark:
        "<benchmarks>/check_pair.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "compare the tokenizers of teacher and student"
    shell:
        '"$PYTHON" "$SCRIPTS"/check_pair.py'
        " --teacher {input.teacher:q}"
        " --student {input.student:q}"
        " {params.objectives:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
