"""Parity: do the models give the logits that `transformers` gives for the same weights?

in:  the Hugging Face folder of each model, with reference.npz (input_ids [B, T], logits [B, T, V]) beside its
     weights; where torch is installed, one is made for a model that has none
out: models/{model}/parity.json of each model with a reference
"""


rule make_reference:
    input:
        source_files,
    output:
        "<models>/{model}/reference.npz",
    params:
        source=source_of,
        code=code("make_reference"),
    log:
        "<logs>/make_reference/{model}.log",
    benchmark:
        "<benchmarks>/make_reference/{model}.tsv"
    threads: 8
    resources:
        **needs("other"),
    message:
        "reference logits of {wildcards.model}"
    shell:
        '"$PYTHON" "$SCRIPTS"/make_reference.py'
        " --source {params.source:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule check_parity:
    input:
        source_files,
        reference=reference_of,
    output:
        "<models>/{model}/parity.json",
    params:
        source=source_of,
        code=code("check_parity"),
    log:
        "<logs>/check_parity/{model}.log",
    benchmark:
        "<benchmarks>/check_parity/{model}.tsv"
    threads: 8
    resources:
        **needs("other"),
    message:
        "compare {wildcards.model} with its reference"
    shell:
        '"$PYTHON" "$SCRIPTS"/check_parity.py'
        " --source {params.source:q}"
        " --reference {input.reference:q}"
        " --out {output:q}"
        " 2>&1 | tee -i {log:q} >&2"


rule parity:
    input:
        parity_files,
    message:
        "every reference is met"
