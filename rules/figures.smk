for _figure in PLAN.figures():

    # One rule per figure, because each reads other tables.
    rule:
        name:
            f"figure_{_figure}"
        input:
            tables=[path for table in FIGURE_TABLES[_figure] for path in PLAN.evidence_files(table)],
            cards=[PLAN.card(dataset) for dataset in PLAN.datasets],
            activations=ancient(PLAN.activation_folders()),
            listings=[f"{folder}.sha256" for folder in PLAN.activation_folders()],
        output:
            svg=f"{PLAN.figure_folder(_figure)}/{_figure}.svg",
            png=report(
                f"{PLAN.figure_folder(_figure)}/{_figure}.png",
                caption=os.path.abspath(f"{PLAN.figure_folder(_figure)}/caption.md"),
                category="Figures",
                labels={"figure": _figure},
            ),
            csv=f"{PLAN.figure_folder(_figure)}/{_figure}.csv",
            caption=f"{PLAN.figure_folder(_figure)}/caption.md",
        log:
            f"{R}/logs/figures/{CONFIG.run.name}/{_figure}.log",
        group:
            short("figures")
        conda:
            "../envs/figures.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000),
            runtime=minutes(20),
        params:
            figure=_figure,
            # A figure does not depend on the key, and where it lies is nobody's business.
            run=CONFIG.run.model_dump(mode="json", exclude={"signing_key", "factorial"}),
            studies=PLAN.evidence_settings(_figure),
            datasets=PLAN.datasets,
            places=PLAN.places(),
            lock=LOCK,
            code=code(
                "draw_figure.py",
                without=[f"conceptome.figures.{other}" for other in FIGURE_TABLES if other != _figure],
            ),
        script:
            "../scripts/draw_figure.py"
