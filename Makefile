# Conceptome: raw data of three modalities to figures. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run dry-run slurm studies evidence test test-slow benchmark benchmark-scale validators report dag lint format lock schema sources mlflow unlock clean clean-all

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
GENE_SET_PEERS := .venv-gene-set-peers
VALIDATORS := .venv-validators
HPC := .venv-hpc
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
CONFIG ?=
STUDIES ?=
CORES ?= all
ARGS ?=
CONCEPTOME := $(BIN)/conceptome

help: ## list every target
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: CONFIG=config/test.yaml  STUDIES=kang2018,yeast  CORES=4  ARGS='extra arguments for snakemake'"

setup: $(STAMP) ## create .venv from requirements.lock

$(STAMP): requirements.lock scripts/setup_environment.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup_environment.sh
	@touch $@

run: $(STAMP) ## run the pipeline: data, models, dictionaries, evidence, figures
	@$(CONCEPTOME) run $(if $(CONFIG),--config $(CONFIG)) $(if $(STUDIES),--studies $(STUDIES)) --cores $(CORES) $(if $(ARGS),-- $(ARGS))

dry-run: $(STAMP) ## say what `make run` would do
	@$(CONCEPTOME) run --dry-run $(if $(CONFIG),--config $(CONFIG)) $(if $(STUDIES),--studies $(STUDIES)) --cores $(CORES)

slurm: $(STAMP) ## run the pipeline on a SLURM cluster, from its login node (docs/hpc.md)
	@bash scripts/setup_tools.sh "$(BIN)/python" $(HPC) envs/hpc.txt over
	@$(HPC)/bin/python -m conceptome run --profile config/profiles/slurm $(if $(CONFIG),--config $(CONFIG)) $(if $(STUDIES),--studies $(STUDIES)) $(if $(ARGS),-- $(ARGS))

studies: $(STAMP) ## the published studies and the factorial study (at most 90 minutes on 2 cores)
	@$(CONCEPTOME) run --config config/papers.yaml --cores $(CORES)
	@$(CONCEPTOME) run --config config/factorial.yaml --cores $(CORES)

evidence: $(STAMP) ## every measure on the default studies, with five seeds (half an hour on 2 cores)
	@$(CONCEPTOME) run --config config/evidence.yaml --cores $(CORES)

test: $(STAMP) ## the tests (at most 15 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP) ## the longer checks: runs from scratch, an interrupted run, sae-lens itself, crate validators
	@$(BIN)/python -m pytest -m slow -n logical --maxprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

benchmark: $(STAMP) ## Conceptome beside its peers (at most 30 minutes); writes docs/performance.md (a part: ARGS='--only residues')
	@bash scripts/setup_tools.sh "$(BIN)/python" $(PEERS) envs/peers.txt || echo "warning: the peers could not be set up: without them" >&2
	@bash scripts/setup_tools.sh "$(BIN)/python" $(GENE_SET_PEERS) envs/gene-set-peers.txt || echo "warning: gseapy and decoupler could not be set up: without them" >&2
	@$(BIN)/python tests/benchmark $(ARGS)

benchmark-scale: $(STAMP) ## a 12 GB store through every stage (needs 45 GB of disk); writes the rates of `conceptome plan`
	@$(BIN)/python tests/benchmark/scale.py $(ARGS)

validators: $(STAMP) ## the programs that check an exported crate, in .venv-validators
	@bash scripts/setup_tools.sh "$(BIN)/python" $(VALIDATORS) envs/validators.txt

report: $(STAMP) ## the Snakemake report of the last run, one offline HTML file
	@$(CONCEPTOME) report $(if $(CONFIG),--config $(CONFIG)) $(if $(STUDIES),--studies $(STUDIES))

dag: $(STAMP) ## render the graph of rules to results/dag.svg
	@$(CONCEPTOME) dag $(if $(CONFIG),--config $(CONFIG))

sources: $(STAMP) ## tell which source files are reachable
	@$(CONCEPTOME) sources check

mlflow: $(STAMP) ## open the MLflow pages of the results on 127.0.0.1:5000
	@$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///results/mlflow.db

lint: $(STAMP) ## ruff, snakefmt, snakemake --lint
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/snakemake --lint

format: $(STAMP) ## format Python and Snakemake files
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/snakefmt Snakefile rules

schema: $(STAMP) ## write config/schema.json, config/README.md and docs/studies from the configuration
	@$(CONCEPTOME) schema

lock: ## resolve requirements.lock again (needs uv)
	@bash scripts/lock_requirements.sh

unlock: $(STAMP) ## remove the lock that a killed run left behind
	@$(CONCEPTOME) unlock

clean: ## remove results, keep retrieved sources
	@find results -mindepth 1 -maxdepth 1 ! -name README.md ! -name sources -exec rm -rf {} +

clean-all: clean ## remove results, sources and the virtual environments
	@rm -rf results/sources $(VENV) $(PEERS) $(GENE_SET_PEERS) $(VALIDATORS) $(HPC) .venv-conda .venv-remote .venv-s3-server .snakemake
