"""What a run would do, before it does it.

in:  the recipe, and prompts/index.json where there is one
out: a table on the terminal, plan.json (undeclared: asked for, it is always made anew)
"""


rule plan:
    params:
        recipe=settings(RECIPE),
        index=f"{RUN}/prompts/index.json",
        out=f"{RUN}/plan.json",
    log:
        "<logs>/plan.log",
    threads: 1
    resources:
        **needs("other"),
    message:
        "count what a run would do"
    shell:
        '"$PYTHON" "$SCRIPTS"/plan.py'
        " --recipe {params.recipe:q}"
        " --index {params.index:q}"
        " --out {params.out:q}"
        " 2>&1 | tee -i {log:q} >&2"
