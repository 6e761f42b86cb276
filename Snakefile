# Conceptome's front door: validates the configuration, includes the stages, names the targets.
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(workflow.basedir)
for _folder in ("scripts", "kernels"):
    sys.path.insert(0, str(HERE / _folder))

from snakemake.exceptions import WorkflowError

from conceptome.config.run import resolve
from conceptome.errors import ConceptomeError
from conceptome.files import sha256_file
from conceptome.provenance.checksums import share_checksums
from conceptome.provenance.closure import closure
from conceptome.provenance.configuration import keep
from conceptome.provenance.folder import WORKFLOW_VARIABLE, ProvenanceFolder, new_workflow
from conceptome.sources import load_sources
from conceptome.figures import TABLES as FIGURE_TABLES
from conceptome.measures.registry import MEASURES
from conceptome.measures.tables import TABLES as MEASURE_TABLES
from conceptome.enrichment.tables import TABLES as ENRICHMENT_TABLES
from conceptome.explanations.tables import TABLES as EXPLANATION_TABLES
from conceptome.steering.tables import TABLES as STEERING_TABLES
from conceptome.workflow import Plan, any_of, job_environment


configfile: HERE / "config" / "default.yaml"


try:
    CONFIG = resolve(config, HERE / "config")
    SOURCES = load_sources(HERE / "config" / "sources.yaml")
    PLAN = Plan(CONFIG, SOURCES)
except ConceptomeError as error:
    raise WorkflowError(f"error: {error}")

R = CONFIG.run.results
THREADS = CONFIG.run.threads
# Set once here and inherited by every job: thread counts, hash seed, no telemetry, the libraries' folders.
os.environ.update(job_environment(CONFIG.run, HERE))
# The front door has named this run; where Snakemake was called by itself, its jobs belong together all the same.
os.environ.setdefault(WORKFLOW_VARIABLE, new_workflow())


include: "rules/common.smk"


wildcard_constraints:
    dataset=any_of([*CONFIG.studies, *CONFIG.bases]),
    model=r"[A-Za-z0-9_-]+",
    whitening=r"[A-Za-z0-9_-]+",
    dictionary=r"[A-Za-z0-9_-]+",


# One forward pass over a large data set is cut into parts where the configuration (`scatter`) or the command line
# (--set-scatter embed=64) says so; bits do not depend on their number. With one part there is nothing to gather.
# Before every rule: the directive has Snakemake set the constraints of wildcards anew, and of outputs that lie in a
# store (--default-storage-provider) it would lose them.
scattergather:
    embed=CONFIG.run.scatter,


# What is retrieved comes over the network, which a cluster's nodes often lack: these run where Snakemake was started.
localrules:
    all,
    retrieve,
    retrieve_package,


rule all:
    input:
        PLAN.figure_files(),
        PLAN.paper_files(),
        PLAN.every_card_page(),
        PLAN.factorial_files(),


include: "rules/retrieve.smk"
include: "rules/prepare.smk"
include: "rules/embed.smk"
include: "rules/whiten.smk"
include: "rules/learn.smk"
include: "rules/measure.smk"
include: "rules/enrich.smk"
include: "rules/cards.smk"
include: "rules/steer.smk"
include: "rules/figures.smk"
include: "rules/papers.smk"
include: "rules/factorial.smk"
include: "rules/provenance.smk"
