# One job measures every dictionary and seed of a space: the activations, the labels and their resamplings are shared.
rule measure:
    input:
        data=lambda w: PLAN.data_files(w.dataset),
        activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
        listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
        whitening=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[0],
        whitening_card=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[1],
        dictionaries=lambda w: PLAN.fit_files("dictionary", w.dataset, w.model, w.whitening),
        cards=lambda w: PLAN.fit_files("card", w.dataset, w.model, w.whitening),
        codes=lambda w: PLAN.fit_files("codes", w.dataset, w.model, w.whitening),
    output:
        **{table: f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/{table}.parquet" for table in MEASURE_TABLES},
    log:
        f"{R}/logs/measure/{{dataset}}/{{model}}/{{whitening}}.log",
    conda:
        "../envs/learning.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(2500),
        runtime=minutes(240),
    params:
        measures=lambda w: PLAN.core_settings(w.dataset),
        fits=lambda w: PLAN.fits(w.dataset, w.model),
        lock=LOCK,
        code=code("measure.py"),
    script:
        "../scripts/measure.py"


# A further measure is a job of its own: only the studies that ask for it pay, and a change of one re-runs no other.
for _measure, _tables in MEASURES.items():

    rule:
        name:
            f"measure_{_measure}"
        input:
            data=lambda w: PLAN.data_files(w.dataset),
            activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
            listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
            whitening=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[0],
            whitening_card=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[1],
            dictionaries=lambda w: PLAN.fit_files("dictionary", w.dataset, w.model, w.whitening),
            cards=lambda w: PLAN.fit_files("card", w.dataset, w.model, w.whitening),
            codes=lambda w: PLAN.fit_files("codes", w.dataset, w.model, w.whitening),
            others=lambda w, measure=_measure: ancient(PLAN.compared_stores(w.dataset, w.model, measure)),
            listings=lambda w, measure=_measure: [
                f"{store}.sha256" for store in PLAN.compared_stores(w.dataset, w.model, measure)
            ],
            own=lambda w, measure=_measure: PLAN.measure_files(w.dataset, measure),
            weights=lambda w, measure=_measure: ancient(PLAN.measure_weights(w.dataset, w.model, measure)),
            weight_listings=lambda w, measure=_measure: PLAN.measure_listings(w.dataset, w.model, measure),
        output:
            **{table: f"{R}/evidence/{{dataset}}/{{model}}/{{whitening}}/{table}.parquet" for table in _tables},
        log:
            f"{R}/logs/measure_{_measure}/{{dataset}}/{{model}}/{{whitening}}.log",
        group:
            short("measures_{dataset}_{model}_{whitening}")
        conda:
            "../envs/models.yaml"
        threads: THREADS
        resources:
            mem_mb=memory(2500),
            runtime=minutes(240),
        params:
            measure=_measure,
            settings=lambda w, measure=_measure: getattr(PLAN.study(w.dataset).measures, measure).model_dump(
                mode="json"
            ),
            raw=lambda w, measure=_measure: raw(PLAN.measure_files(w.dataset, measure)),
            model=lambda w, measure=_measure: PLAN.measure_model(w.dataset, w.model, measure),
            fits=lambda w: PLAN.fits(w.dataset, w.model),
            methods=lambda w: PLAN.methods(w.dataset, w.model),
            lock=LOCK,
            code=code("measure_further.py", without=PLAN.other_measures(_measure)),
        script:
            "../scripts/measure_further.py"
