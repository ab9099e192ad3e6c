"""The page to read.

in:  all that a run left: scores, ledger, training curves, completions
out: report.html
"""


rule report:
    input:
        compatibility="<run>/compatibility.json" if RECIPE.teacher else [],
        index=ancient(index_file),
        completions=completion_files,
        dataset="<run>/dataset" if RECIPE.prompts else [],
        metrics=expand("<run>/students/{stage}/metrics.jsonl", stage=RECIPE.stages),
        final=expand("<run>/students/{stage}/final.json", stage=RECIPE.stages),
        scores=expand("<run>/evaluation/{scored}.json", scored=SCORED),
        summary="<run>/summary.json" if SCORED else [],
    output:
        html=report("<run>/report.html", caption="captions/report.rst", category="Report"),
    params:
        run=lambda w, output: Path(output.html).parent,
        recipe=told_settings,
        index=index_digest,
        code=code("report"),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "write the report"
    shell:
        '"$PYTHON" "$SCRIPTS"/report.py'
        " --run {params.run:q}"
        " --recipe {params.recipe:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
