rule embed:
    input:
        dataset=lambda w: PLAN.data_files(w.dataset),
        weights=lambda w: PLAN.weights(w.dataset, w.model),
    output:
        activations=directory(f"{R}/activations/{{dataset}}/{{model}}"),
    log:
        f"{R}/logs/embed/{{dataset}}/{{model}}.log",
    conda:
        "../envs/models.yaml"
    threads: THREADS
    resources:
        mem_mb=2500,
    params:
        model=lambda w: PLAN.study(w.dataset).models[w.model].model_dump(mode="json"),
        code=lambda w: code("embed.py", without=PLAN.other_adapters(w.dataset, w.model)),
    script:
        "../scripts/embed.py"
