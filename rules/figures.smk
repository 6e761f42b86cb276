for _figure in PLAN.figures():

    # One rule per figure, because each reads other tables.
    rule:
        name:
            f"figure_{_figure}"
        input:
            **PLAN.figure_inputs(FIGURE_TABLES[_figure]),
            cards=[f"{R}/data/{dataset}/card.json" for dataset in PLAN.datasets],
        output:
            svg=f"{PLAN.figure_folder(_figure)}/{_figure}.svg",
            png=report(
                f"{PLAN.figure_folder(_figure)}/{_figure}.png",
                caption=os.path.abspath(f"{PLAN.figure_folder(_figure)}/caption.rst"),
                category="Figures",
                labels={"figure": _figure},
            ),
            table=f"{PLAN.figure_folder(_figure)}/{_figure}.csv",
            caption=f"{PLAN.figure_folder(_figure)}/caption.rst",
        params:
            figure=_figure,
            run=CONFIG.run.model_dump(mode="json"),
            code=code("draw_figure.py", without=[f"conceptome.figures.{other}" for other in FIGURE_TABLES if other != _figure]),
        log:
            f"{R}/logs/figures/{CONFIG.run.name}/{_figure}.log",
        threads: 1
        conda:
            "../envs/figures.yaml"
        resources:
            mem_mb=1000,
        script:
            "../scripts/draw_figure.py"
