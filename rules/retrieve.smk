rule retrieve:
    output:
        f"{R}/sources/{{source}}",
    log:
        f"{R}/logs/retrieve/{{source}}.log",
    wildcard_constraints:
        source=PLAN.source_pattern("file"),
    conda:
        "../envs/models.yaml"
    resources:
        mem_mb=memory(500),
        runtime=minutes(60),
    params:
        entry=lambda w: SOURCES[w.source].model_dump(mode="json"),
        lock=LOCK,
        code=code("retrieve.py"),
    script:
        "../scripts/retrieve.py"


rule retrieve_package:
    output:
        directory(f"{R}/sources/{{source}}"),
        listing=f"{R}/sources/{{source}}.sha256",
    log:
        f"{R}/logs/retrieve/{{source}}.log",
    wildcard_constraints:
        source=PLAN.source_pattern("folder"),
    conda:
        "../envs/models.yaml"
    resources:
        mem_mb=memory(1000),
        runtime=minutes(60),
    params:
        entry=lambda w: SOURCES[w.source].model_dump(mode="json"),
        lock=LOCK,
        code=code("retrieve.py"),
    script:
        "../scripts/retrieve.py"


# One rule per input, because what an archive gives differs: a table, a table and its images, a file.
for _dataset, _input, _archive in PLAN.archives():

    rule:
        name:
            f"retrieve_{_dataset}_{_input}".replace("-", "_")
        output:
            **{"images": directory(folder) for folder in PLAN.archive_images(_dataset) if _input == "load_data"},
            file=f"{PLAN.archive_folder(_dataset, _input)}/{_archive.file()}",
            receipt=f"{PLAN.archive_folder(_dataset, _input)}/receipt.json",
        log:
            f"{R}/logs/retrieve/{_dataset}/{_input}.log",
        # As the two above, in `localrules`.
        localrule: True
        conda:
            "../envs/models.yaml"
        resources:
            mem_mb=memory(2000),
            runtime=minutes(480),
        params:
            archive=_archive.model_dump(mode="json"),
            lock=LOCK,
            code=code("retrieve_archive.py"),
        script:
            "../scripts/retrieve_archive.py"
