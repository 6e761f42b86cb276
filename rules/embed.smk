rule embed:
    input:
        data=lambda w: PLAN.data_files(w.dataset),
        weights=lambda w: PLAN.weights(w.dataset, w.model),
    output:
        directory(f"{R}/activations/{{dataset}}/{{model}}"),
    params:
        model=lambda w: PLAN.study(w.dataset).models[w.model].model_dump(mode="json"),
        code=lambda w: code("embed.py", without=PLAN.other_adapters(w.dataset, w.model)),
    log:
        f"{R}/logs/embed/{{dataset}}/{{model}}.log",
    threads: THREADS
    conda:
        "../envs/models.yaml"
    resources:
        mem_mb=2500,
    script:
        "../scripts/embed.py"
