rule retrieve:
    output:
        f"{R}/sources/{{source}}",
    params:
        entry=lambda w: SOURCES[w.source].model_dump(mode="json"),
        code=code("retrieve.py"),
    wildcard_constraints:
        source=PLAN.source_pattern("file"),
    log:
        f"{R}/logs/retrieve/{{source}}.log",
    conda:
        "../envs/base.yaml"
    resources:
        mem_mb=500,
    script:
        "../scripts/retrieve.py"


rule retrieve_package:
    output:
        directory(f"{R}/sources/{{source}}"),
    params:
        entry=lambda w: SOURCES[w.source].model_dump(mode="json"),
        code=code("retrieve.py"),
    wildcard_constraints:
        source=PLAN.source_pattern("folder"),
    log:
        f"{R}/logs/retrieve/{{source}}.log",
    conda:
        "../envs/models.yaml"
    resources:
        mem_mb=1000,
    script:
        "../scripts/retrieve.py"
