KEY = "{dataset}/{model}/{whitening}/{dictionary}"


# Methods without randomness are fitted once, all others with every seed: the two rules differ in their outputs alone.
# One job fits every seed: the activations are read and whitened once. Codes are written by the same job, because the
# dictionary is at hand and encoding is one pass over rows that are already in memory.
rule learn:
    input:
        activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
        listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
        whitening=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[0],
        whitening_card=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[1],
    output:
        dictionaries=expand(
            f"{R}/dictionaries/{KEY}/seed{{seed}}/dictionary.safetensors", seed=CONFIG.run.seeds, allow_missing=True
        ),
        cards=expand(f"{R}/dictionaries/{KEY}/seed{{seed}}/card.json", seed=CONFIG.run.seeds, allow_missing=True),
        codes=expand(f"{R}/codes/{KEY}/seed{{seed}}/codes.parquet", seed=CONFIG.run.seeds, allow_missing=True),
    log:
        f"{R}/logs/learn/{KEY}.log",
    wildcard_constraints:
        dictionary=any_of(PLAN.dictionary_names(seedless=False)),
    conda:
        "../envs/learning.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(2000),
        runtime=minutes(480),
        # Asked for by what trains on one (`device: cuda`) and by nothing else; a machine lends them by --resources gpu=1.
        gpu=lambda w: PLAN.gpus(w.dataset, w.dictionary),
    params:
        dictionary=lambda w: PLAN.study(w.dataset).dictionaries[w.dictionary].model_dump(mode="json"),
        seeds=lambda w: PLAN.seeds(w.dataset, w.dictionary),
        # Not an output: what a killed job leaves there, the next one goes on from; it is gone when the job ends well.
        checkpoints=f"{R}/checkpoints/{KEY}",
        lock=LOCK,
        code=lambda w: code("learn.py", without=PLAN.other_methods(w.dataset, w.dictionary)),
    script:
        "../scripts/learn.py"


use rule learn as learn_seedless with:
    output:
        dictionaries=[f"{R}/dictionaries/{KEY}/seed{CONFIG.run.seeds[0]}/dictionary.safetensors"],
        cards=[f"{R}/dictionaries/{KEY}/seed{CONFIG.run.seeds[0]}/card.json"],
        codes=[f"{R}/codes/{KEY}/seed{CONFIG.run.seeds[0]}/codes.parquet"],
    wildcard_constraints:
        dictionary=any_of(PLAN.dictionary_names(seedless=True)),


# Dictionaries that several processes train together (`processes`): torch's elastic launch on one machine, started
# again from the checkpoint when a process dies.
use rule learn as learn_distributed with:
    log:
        f"{R}/logs/learn/{KEY}.log",
    wildcard_constraints:
        dictionary=any_of(PLAN.dictionary_names(seedless=False, together=True)),
    threads: lambda w: THREADS * PLAN.processes(w.dataset, w.dictionary)
    resources:
        mem_mb=lambda w, attempt: memory(1000 + 1000 * PLAN.processes(w.dataset, w.dictionary))(w, attempt),
        runtime=minutes(480),
