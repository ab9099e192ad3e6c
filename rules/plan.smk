"""What a run would do, before it does it.

in:  the recipe; config.json of its models and prompts/index.json where they are there
out: plan.json, and a table of it
"""


rule make_plan:
    output:
        plan="<run>/plan.json",
        table="<run>/plan.txt",
    params:
        recipe=settings(RECIPE),
        configs=config_files,
        index=f"{RUN}/prompts/index.json",
        read=planned_on,
        code=code("make_plan"),
    log:
        "<logs>/make_plan.log",
    benchmark:
        "<benchmarks>/make_plan.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "count what a run would do"
    shell:
        '"$PYTHON" "$SCRIPTS"/make_plan.py'
        " --recipe {params.recipe:q}"
        " --configs {params.configs:q}"
        " --index {params.index:q}"
        " --out {output.plan:q}"
        " --table {output.table:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule plan:
    input:
        plan="<run>/plan.json",
        table="<run>/plan.txt",
    log:
        "<logs>/plan.log",
    threads: 1
    message:
        "the plan is {input.plan}"
    shell:
        "tee -i {log:q} < {input.table:q} >&2"
