KEY = "{dataset}/{model}/{whitening}/{dictionary}"


# One job fits every seed: the activations are read and whitened once. Codes are written by the same job, because the
# dictionary is at hand and encoding is one pass over rows that are already in memory.
rule learn:
    input:
        activations=f"{R}/activations/{{dataset}}/{{model}}",
        whitening=f"{R}/whitening/{{dataset}}/{{model}}/{{whitening}}/whitening.safetensors",
        whitening_card=f"{R}/whitening/{{dataset}}/{{model}}/{{whitening}}/card.json",
    output:
        dictionaries=expand(
            f"{R}/dictionaries/{KEY}/seed{{seed}}/dictionary.safetensors", seed=CONFIG.run.seeds, allow_missing=True
        ),
        cards=expand(f"{R}/dictionaries/{KEY}/seed{{seed}}/card.json", seed=CONFIG.run.seeds, allow_missing=True),
        codes=expand(f"{R}/codes/{KEY}/seed{{seed}}/codes.parquet", seed=CONFIG.run.seeds, allow_missing=True),
    log:
        f"{R}/logs/learn/{KEY}.log",
    conda:
        "../envs/learning.yaml"
    threads: THREADS
    resources:
        mem_mb=2000,
    params:
        dictionary=lambda w: PLAN.study(w.dataset).dictionaries[w.dictionary].model_dump(mode="json"),
        seeds=CONFIG.run.seeds,
        code=lambda w: code("learn.py", without=PLAN.other_methods(w.dataset, w.dictionary)),
    script:
        "../scripts/learn.py"
