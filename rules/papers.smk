if PLAN.papers():

    rule papers:
        input:
            [path for _, _, path in PLAN.paper_tables()],
        output:
            numbers=f"{PLAN.paper_folder()}/numbers.parquet",
            corrections=f"{PLAN.paper_folder()}/corrections.parquet",
            table=f"{PLAN.paper_folder()}/papers.md",
            pages=[f"{PLAN.paper_folder()}/{study}.md" for study in PLAN.papers()],
        log:
            f"{R}/logs/papers/{CONFIG.run.name}.log",
        conda:
            "../envs/figures.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000),
            runtime=minutes(20),
        params:
            papers={study: paper.model_dump(mode="json") for study, paper in PLAN.papers().items()},
            tables=[[study, table] for study, table, _ in PLAN.paper_tables()],
            lock=LOCK,
            code=code("papers.py"),
        script:
            "../scripts/papers.py"
