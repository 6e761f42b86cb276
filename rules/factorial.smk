if PLAN.factorial_cells():

    # One job fits every seed and reads them with every encoder: samples, labels and their resamplings are shared.
    rule factorial_cells:
        input:
            data=lambda w: PLAN.data_files(w.dataset),
            activations=lambda w: ancient(PLAN.activations(w.dataset, w.model)),
            listing=lambda w: f"{PLAN.activations(w.dataset, w.model)}.sha256",
            whitening=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[0],
            whitening_card=lambda w: PLAN.whitening_files(w.dataset, w.model, w.whitening)[1],
        output:
            f"{R}/factorial/{{dataset}}/{{model}}/{{whitening}}/{{method}}.parquet",
        log:
            f"{R}/logs/factorial_cells/{{dataset}}/{{model}}/{{whitening}}/{{method}}.log",
        wildcard_constraints:
            method=any_of(PLAN.factorial_methods()),
        conda:
            "../envs/learning.yaml"
        threads: THREADS
        resources:
            mem_mb=memory(1500),
            runtime=minutes(480),
        params:
            factorial=lambda w: PLAN.factorial_settings(w.dataset, w.method),
            seeds=lambda w: PLAN.factorial_seeds(w.method),
            lock=LOCK,
            code=lambda w: code("factorial_cells.py", without=PLAN.other_modules(w.method)),
        script:
            "../scripts/factorial_cells.py"

    rule factorial_effects:
        input:
            PLAN.factorial_cells(),
        output:
            effects=f"{PLAN.factorial_folder()}/factorial_effects.parquet",
            levels=f"{PLAN.factorial_folder()}/factorial_levels.parquet",
            summary=f"{PLAN.factorial_folder()}/factorial_summary.parquet",
            cells=f"{PLAN.factorial_folder()}/factorial.parquet",
            page=f"{PLAN.factorial_folder()}/factorial.md",
        log:
            f"{R}/logs/factorial_effects/{CONFIG.run.name}.log",
        conda:
            "../envs/learning.yaml"
        threads: THREADS
        resources:
            mem_mb=memory(2000),
            runtime=minutes(60),
        params:
            factorial=CONFIG.run.factorial.model_dump(mode="json"),
            seeds=CONFIG.run.seeds,
            lock=LOCK,
            code=code("factorial_effects.py"),
        script:
            "../scripts/factorial_effects.py"
