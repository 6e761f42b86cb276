rule embed:
    input:
        dataset=lambda w: PLAN.data_files(w.dataset),
        weights=lambda w: ancient(PLAN.weights(w.dataset, w.model)),
        listings=lambda w: PLAN.weight_listings(w.dataset, w.model),
        parts=parts,
    output:
        activations=directory(f"{R}/activations/{{dataset}}/{{model}}"),
        listing=f"{R}/activations/{{dataset}}/{{model}}.sha256",
    log:
        f"{R}/logs/embed/{{dataset}}/{{model}}.log",
    conda:
        "../envs/models.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(2500),
        runtime=minutes(480),
    params:
        model=lambda w: PLAN.study(w.dataset).models[w.model].model_dump(mode="json"),
        # Not an output: shards that a killed job leaves there, the next one goes on from; gone when the job ends well.
        checkpoints=f"{R}/checkpoints/embed/{{dataset}}/{{model}}",
        raw=lambda w: raw(PLAN.own_weights(w.dataset, w.model)),
        lock=LOCK,
        code=lambda w: code("embed.py", without=PLAN.other_adapters(w.dataset, w.model)),
    script:
        "../scripts/embed.py"


# Removed when they are gathered (--notemp keeps them): `temporary` tells whoever verifies that they may be gone.
use rule embed as embed_part with:
    input:
        dataset=lambda w: PLAN.data_files(w.dataset),
        weights=lambda w: ancient(PLAN.weights(w.dataset, w.model)),
        listings=lambda w: PLAN.weight_listings(w.dataset, w.model),
    output:
        activations=temp(directory(PARTS)),
    log:
        f"{R}/logs/embed/{{dataset}}/{{model}}/{{scatteritem}}.log",
    params:
        model=lambda w: PLAN.study(w.dataset).models[w.model].model_dump(mode="json"),
        checkpoints=f"{R}/checkpoints/embed/{{dataset}}/{{model}}/{{scatteritem}}",
        temporary=True,
        raw=lambda w: raw(PLAN.own_weights(w.dataset, w.model)),
        lock=LOCK,
        code=lambda w: code("embed.py", without=PLAN.other_adapters(w.dataset, w.model)),
