rule enrich:
    input:
        data=lambda w: PLAN.data_files(w.dataset),
        activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
        listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
        codes=lambda w: PLAN.fit_files("codes", w.dataset, w.model, w.whitening),
        structures=lambda w: PLAN.structures(w.dataset),
        gene_sets=lambda w: list(PLAN.gene_sets(w.dataset).values()),
        ontology=lambda w: PLAN.ontology(w.dataset),
    output:
        **{table: f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/{table}.parquet" for table in ENRICHMENT_TABLES},
    log:
        f"{R}/logs/enrich/{{dataset}}/{{model}}/{{whitening}}.log",
    conda:
        "../envs/learning.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(2500),
        runtime=minutes(480),
    params:
        enrichment=lambda w: PLAN.study(w.dataset).enrichment.model_dump(mode="json"),
        gene_sets=lambda w: list(PLAN.gene_sets(w.dataset)),
        raw=lambda w: raw([*PLAN.own_terms(w.dataset), *PLAN.structures(w.dataset)]),
        fits=lambda w: PLAN.fits(w.dataset, w.model),
        methods=lambda w: PLAN.methods(w.dataset, w.model),
        lock=LOCK,
        code=code("enrich.py"),
    script:
        "../scripts/enrich.py"
