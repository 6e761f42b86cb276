rule retrieve:
    output:
        f"{R}/sources/{{source}}",
    log:
        f"{R}/logs/retrieve/{{source}}.log",
    wildcard_constraints:
        source=PLAN.source_pattern("file"),
    conda:
        "../envs/base.yaml"
    resources:
        mem_mb=500,
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
        mem_mb=1000,
    params:
        entry=lambda w: SOURCES[w.source].model_dump(mode="json"),
        lock=LOCK,
        code=code("retrieve.py"),
    script:
        "../scripts/retrieve.py"
