rule prepare_matrix:
    input:
        lambda w: list(PLAN.dataset_inputs(w.dataset).values()),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        matrix=f"{R}/data/{{dataset}}/X.h5ad",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("matrix")),
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=1500,
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_files(w.dataset)),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"


rule prepare_proteins:
    input:
        lambda w: list(PLAN.dataset_inputs(w.dataset).values()),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        sequences=f"{R}/data/{{dataset}}/sequences.fasta",
        annotations=f"{R}/data/{{dataset}}/annotations.parquet",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("proteins")),
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=1500,
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_files(w.dataset)),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"


rule prepare_simulated:
    input:
        lambda w: list(PLAN.dataset_inputs(w.dataset).values()),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        matrix=f"{R}/data/{{dataset}}/X.h5ad",
        truth=f"{R}/data/{{dataset}}/truth.parquet",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("simulated")),
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=1500,
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_files(w.dataset)),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"
