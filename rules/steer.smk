rule steer:
    input:
        data=lambda w: PLAN.data_files(w.dataset),
        activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
        listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
        whitening=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[0],
        whitening_card=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[1],
        dictionaries=lambda w: PLAN.fit_files("dictionary", w.dataset, w.model, w.whitening),
        cards=lambda w: PLAN.fit_files("card", w.dataset, w.model, w.whitening),
        codes=lambda w: PLAN.fit_files("codes", w.dataset, w.model, w.whitening),
        weights=lambda w: ancient(PLAN.weights(w.dataset, w.model)),
        listings=lambda w: PLAN.weight_listings(w.dataset, w.model),
    output:
        **{table: f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/{table}.parquet" for table in STEERING_TABLES},
    log:
        f"{R}/logs/steer/{{dataset}}/{{model}}/{{whitening}}.log",
    conda:
        "../envs/models.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(2500),
        runtime=minutes(240),
    params:
        steering=lambda w: PLAN.study(w.dataset).steering.model_dump(mode="json"),
        model=lambda w: PLAN.study(w.dataset).models[w.model].model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_weights(w.dataset, w.model)),
        fits=lambda w: PLAN.fits(w.dataset, w.model),
        methods=lambda w: PLAN.methods(w.dataset, w.model),
        lock=LOCK,
        code=code("steer.py"),
    script:
        "../scripts/steer.py"
