"""Checkpoints.

in:  a Hub id, a Hugging Face folder, or a params folder such as another run's student (taken as it is)
out: models/{model}/params/ of each with imported.json
"""


# A pinned snapshot is what it is: with a digest of code, an edit to the client would rerun all that follows.
rule download:
    output:
        folder=directory("<models>/{model}/source"),
    params:
        model=model_settings,
    log:
        "<logs>/download/{model}.log",
    benchmark:
        "<benchmarks>/download/{model}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "download {wildcards.model}"
    shell:
        '"$PYTHON" "$SCRIPTS"/download.py'
        " --model {params.model:q}"
        " --out {output.folder:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule download_tokenizer:
    input:
        override_files,
    output:
        directory("<models>/{model}/tokenizer"),
    params:
        model=model_settings,
    log:
        "<logs>/download_tokenizer/{model}.log",
    benchmark:
        "<benchmarks>/download_tokenizer/{model}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "download the tokenizer of {wildcards.model}"
    shell:
        '"$PYTHON" "$SCRIPTS"/download_tokenizer.py'
        " --model {params.model:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule import_checkpoint:
    input:
        source_files,
    output:
        params=directory("<models>/{model}/params"),
        record="<models>/{model}/imported.json",
    params:
        **contents(lambda w: FILES[MODELS[w.model]]),
        source=source_of,
        tokenizer=tokenizer_of,
        model=model_settings,
        code=code("import_checkpoint"),
    log:
        "<logs>/import_checkpoint/{model}.log",
    benchmark:
        "<benchmarks>/import_checkpoint/{model}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "import {wildcards.model}"
    shell:
        '"$PYTHON" "$SCRIPTS"/import_checkpoint.py'
        " --source {params.source:q}"
        " --tokenizer {params.tokenizer:q}"
        " --model {params.model:q}"
        " --out {output.params:q}"
        " --record {output.record:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule derive_student:
    input:
        parent=parent_of,
        prompts=judged_on,
    output:
        params=directory("<models>/{derived}/params"),
        record="<models>/{derived}/imported.json",
    params:
        **contents(FILES["prompts"]),
        model=derived_settings,
        prompts=judging_prompts,
        code=code("derive_student"),
    log:
        "<logs>/derive_student/{derived}.log",
    benchmark:
        "<benchmarks>/derive_student/{derived}.tsv"
    threads: cpus("other")
    resources:
        **needs("other"),
    message:
        "derive {wildcards.derived}"
    shell:
        '"$PYTHON" "$SCRIPTS"/derive_student.py'
        " --parent {input.parent:q}"
        " --model {params.model:q}"
        " {params.prompts:q}"
        " --out {output.params:q}"
        " --record {output.record:q}"
        " 2>&1 | tee -i {log:q} >&2"
