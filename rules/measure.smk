# One job measures every dictionary and seed of a space: the activations, the labels and their resamplings are shared.
rule measure:
    input:
        data=lambda w: PLAN.data_files(w.dataset),
        activations=ancient(f"{R}/activations/{{dataset}}/{{model}}"),
        listing=f"{R}/activations/{{dataset}}/{{model}}.sha256",
        whitening=f"{R}/whitening/{{dataset}}/{{model}}/{{whitening}}/whitening.safetensors",
        whitening_card=f"{R}/whitening/{{dataset}}/{{model}}/{{whitening}}/card.json",
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
        mem_mb=2500,
    params:
        measures=lambda w: PLAN.study(w.dataset).measures.model_dump(mode="json"),
        fits=lambda w: PLAN.fits(w.dataset, w.model),
        lock=LOCK,
        code=code("measure.py"),
    script:
        "../scripts/measure.py"
