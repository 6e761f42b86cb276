rule prepare_matrix:
    input:
        lambda w: stored(PLAN.dataset_inputs(w.dataset).values()),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        matrix=f"{R}/data/{{dataset}}/X.h5ad",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("matrix")),
    group:
        short("prepare")
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(1500),
        runtime=minutes(60),
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_files(w.dataset)),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"


rule prepare_proteins:
    input:
        lambda w: stored(PLAN.dataset_inputs(w.dataset).values()),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        sequences=f"{R}/data/{{dataset}}/sequences.fasta",
        annotations=f"{R}/data/{{dataset}}/annotations.parquet",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("proteins")),
    group:
        short("prepare")
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(1500),
        runtime=minutes(60),
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_files(w.dataset)),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"


rule prepare_images:
    input:
        lambda w: stored(PLAN.dataset_inputs(w.dataset).values()),
        images=lambda w: PLAN.image_files(w.dataset) + PLAN.archive_images(w.dataset),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        crops=f"{R}/data/{{dataset}}/crops.npy",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("images")),
    group:
        short("prepare")
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(1500),
        runtime=minutes(60),
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw([*PLAN.own_files(w.dataset), *PLAN.image_files(w.dataset)]),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"


rule prepare_simulated:
    input:
        lambda w: stored(PLAN.dataset_inputs(w.dataset).values()),
    output:
        obs=f"{R}/data/{{dataset}}/obs.parquet",
        card=f"{R}/data/{{dataset}}/card.json",
        matrix=f"{R}/data/{{dataset}}/X.h5ad",
        truth=f"{R}/data/{{dataset}}/truth.parquet",
    log:
        f"{R}/logs/prepare/{{dataset}}.log",
    wildcard_constraints:
        dataset=any_of(PLAN.of_modality("simulated")),
    group:
        short("prepare")
    conda:
        "../envs/data.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(1500),
        runtime=minutes(60),
    params:
        dataset=lambda w: PLAN.study(w.dataset).dataset.model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_files(w.dataset)),
        lock=LOCK,
        code=code("prepare.py"),
    script:
        "../scripts/prepare.py"
