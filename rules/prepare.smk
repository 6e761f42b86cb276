rule prepare_matrix:
    input:
        unpack(lambda w: PLAN.dataset_inputs(w.dataset)),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        matrix=f"{R}/data/{{dataset}}/X.h5ad",
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        code=code("prepare.py"),
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("matrix")),
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    threads: THREADS
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1500,
    script:
        "../scripts/prepare.py"


rule prepare_proteins:
    input:
        unpack(lambda w: PLAN.dataset_inputs(w.dataset)),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        sequences=f"{R}/data/{{dataset}}/sequences.fasta",
        annotations=f"{R}/data/{{dataset}}/annotations.parquet",
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        code=code("prepare.py"),
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("proteins")),
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    threads: THREADS
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1500,
    script:
        "../scripts/prepare.py"


rule prepare_simulated:
    input:
        unpack(lambda w: PLAN.dataset_inputs(w.dataset)),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        matrix=f"{R}/data/{{dataset}}/X.h5ad",
        truth=f"{R}/data/{{dataset}}/truth.parquet",
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        code=code("prepare.py"),
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("simulated")),
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    threads: THREADS
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1500,
    script:
        "../scripts/prepare.py"
