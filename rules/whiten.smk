rule whiten:
    input:
        activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
        listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
    output:
        transform=f"{R}/whitening/{{dataset}}/{{model}}/{{whitening}}/whitening.safetensors",
        card=f"{R}/whitening/{{dataset}}/{{model}}/{{whitening}}/card.json",
    log:
        f"{R}/logs/whiten/{{dataset}}/{{model}}/{{whitening}}.log",
    group:
        short("whiten_{dataset}_{model}")
    conda:
        "../envs/learning.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(1000),
        runtime=minutes(60),
    params:
        whitening=lambda w: PLAN.whitening(w.dataset, w.whitening).model_dump(mode="json"),
        lock=LOCK,
        code=code("whiten.py"),
    script:
        "../scripts/whiten.py"
