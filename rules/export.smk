"""Students as Hugging Face folders.

in:  students/{stage}/params/
out: export/{stage}/
"""


rule export_checkpoint:
    input:
        once_indexed(lambda w: params_of(w.stage)),
    output:
        directory("<run>/export/{stage}"),
    params:
        code=code("export_checkpoint"),
    log:
        "<logs>/export_checkpoint/{stage}.log",
    benchmark:
        "<benchmarks>/export_checkpoint/{stage}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "export {wildcards.stage}"
    shell:
        '"$PYTHON" "$SCRIPTS"/export_checkpoint.py'
        " --params {input:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"
