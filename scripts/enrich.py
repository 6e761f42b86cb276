from conceptome.provenance.record import job

with job(snakemake):
    pass
