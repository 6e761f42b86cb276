# Cards read codes and evidence; only the studies that ask for explanations have them.
rule cards:
    input:
        data=lambda w: PLAN.data_files(w.dataset),
        activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
        listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
        whitening=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[0],
        whitening_card=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[1],
        dictionaries=lambda w: PLAN.fit_files("dictionary", w.dataset, w.model, w.whitening),
        cards=lambda w: PLAN.fit_files("card", w.dataset, w.model, w.whitening),
        codes=lambda w: PLAN.fit_files("codes", w.dataset, w.model, w.whitening),
        labels=f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/labels.parquet",
        gene_sets=f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/gene_sets.parquet",
        residues=f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/residues.parquet",
        stability_atoms=f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/stability_atoms.parquet",
        sources=lambda w: PLAN.technical_flags(w.dataset, w.model, w.whitening),
        collections=lambda w: list(PLAN.gene_sets(w.dataset).values()),
    output:
        **{table: f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/{table}.parquet" for table in EXPLANATION_TABLES},
    log:
        f"{R}/logs/cards/{{dataset}}/{{model}}/{{whitening}}.log",
    conda:
        "../envs/models.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(2500),
        runtime=minutes(120),
    params:
        explanations=lambda w: PLAN.study(w.dataset).explanations.model_dump(mode="json"),
        enrichment=lambda w: PLAN.study(w.dataset).enrichment.model_dump(mode="json"),
        collections=lambda w: list(PLAN.gene_sets(w.dataset)),
        fits=lambda w: PLAN.fits(w.dataset, w.model),
        methods=lambda w: PLAN.methods(w.dataset, w.model),
        lock=LOCK,
        code=code("cards.py"),
    script:
        "../scripts/cards.py"


for _dataset, _model, _whitening in PLAN.explained_spaces():

    # One rule per space, because each has pages of other dictionaries.
    rule:
        name:
            f"card_pages_{_dataset}_{_model}_{_whitening}".replace("-", "_")
        input:
            cards=f"{R}/evidence/{_dataset}/{_model}/{_whitening}/cards.parquet",
            card=PLAN.card(_dataset),
            activations=ancient(PLAN.activations(_dataset, _model)),
            listing=f"{PLAN.activations(_dataset, _model)}.sha256",
        output:
            overview=PLAN.card_pages(_dataset, _model, _whitening)[-1],
            pages=PLAN.card_pages(_dataset, _model, _whitening)[:-1],
        log:
            f"{R}/logs/card_pages/{CONFIG.run.name}/{_dataset}/{_model}/{_whitening}.log",
        group:
            short("card_pages")
        conda:
            "../envs/models.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000),
            runtime=minutes(20),
        params:
            place=[_dataset, _model, _whitening],
            dictionaries=PLAN.explained_dictionaries(_dataset, _model),
            lock=LOCK,
            code=code("card_pages.py"),
        script:
            "../scripts/card_pages.py"
