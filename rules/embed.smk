rule embed:
    input:
        dataset=lambda w: PLAN.data_files(w.dataset),
        weights=lambda w: ancient(PLAN.weights(w.dataset, w.model)),
        listings=lambda w: PLAN.weight_listings(w.dataset, w.model),
    output:
        activations=directory(f"{R}/activations/{{dataset}}/{{model}}"),
        listing=f"{R}/activations/{{dataset}}/{{model}}.sha256",
    log:
        f"{R}/logs/embed/{{dataset}}/{{model}}.log",
    conda:
        "../envs/models.yaml"
    threads: THREADS
    resources:
        mem_mb=2500,
    params:
        model=lambda w: PLAN.study(w.dataset).models[w.model].model_dump(mode="json"),
        raw=lambda w: raw(PLAN.own_weights(w.dataset, w.model)),
        lock=LOCK,
        code=lambda w: code("embed.py", without=PLAN.other_adapters(w.dataset, w.model)),
    script:
        "../scripts/embed.py"
