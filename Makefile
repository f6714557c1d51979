# Everything that is done with a checkout. "make help" lists the targets.
#
#   PYTHON=python3.12   the interpreter of .venv (3.10 to 3.13; by default one that is found)
#   KEEP=1              make demo: leave Airflow's page open at the end
#   TESTS=tests/unit    make test: only these; ARGS="-k name -x" goes to pytest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

VENV ?= .venv
VENV_OLDEST ?= .venv-oldest
TESTS ?= tests
TESTS_OLDEST ?= tests/airflow tests/server tests/unit/test_run_dag.py
BIN := $(VENV)/bin
export PYTHON KEEP

.PHONY: help venv demo test test-oldest chaos bench bench-matching bench-hub lint format docs constraints clean

help: ## Show the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# A marker file per environment: made again when what it was made from has changed.
$(VENV)/.made: pyproject.toml constraints/dev.txt scripts/make-venv
	@scripts/make-venv $(VENV) dev constraints/dev.txt

$(VENV_OLDEST)/.made: pyproject.toml constraints/oldest.txt scripts/make-venv
	@PYTHON=$${PYTHON_OLDEST:-} scripts/make-venv $(VENV_OLDEST) test constraints/oldest.txt 3.10

venv: $(VENV)/.made ## Make .venv with the package and all that its development needs

demo: $(VENV)/.made ## Show it at work: brokers, Airflow, one group of events (KEEP=1 leaves it open)
	@exec $(BIN)/python -m demo

test: $(VENV)/.made ## Run all tests, with real brokers and a real Airflow
	@scripts/system-deps
	exec scripts/run-tests $(BIN)/python "$(TESTS)" $(ARGS)

test-oldest: $(VENV_OLDEST)/.made ## Run the Airflow tests on the oldest supported Airflow
	@scripts/system-deps
	exec $(VENV_OLDEST)/bin/python -m pytest -W ignore $(TESTS_OLDEST) $(ARGS)

chaos: $(VENV)/.made ## Break things for half an hour while messages flow, and count what is lost (ARGS="--seed 7")
	@scripts/system-deps
	exec $(BIN)/python -m tests.chaos $(ARGS)

bench: $(VENV)/.made ## Measure it beside Airflow's own sensors, against targets (15 min; ARGS="--only latency", "--quick")
	@scripts/system-deps
	exec $(BIN)/python -m benchmarks $(ARGS)

bench-matching: $(VENV)/.made ## Measure what finding the patterns of a message costs, against targets
	@exec $(BIN)/python -m benchmarks.bench_matching

bench-hub: $(VENV)/.made ## Measure what a message and a waiting group cost in the triggerer, against targets
	@exec $(BIN)/python -m benchmarks.hub

# Ruff's rules S are bandit's; bandit itself finds nothing beyond them.
lint: $(VENV)/.made ## Check style, security, types, who imports whom, and known vulnerabilities (skipped without a network)
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/audit-dependencies

format: $(VENV)/.made ## Format the code and sort the imports
	@$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(VENV)/.made ## Build the documents into site/; any warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: $(VENV)/.made ## Resolve constraints/*.txt anew (ARGS=--upgrade for newer versions)
	@scripts/compile-constraints $(ARGS)

clean: ## Remove environments, caches and what was built
	@rm -rf $(VENV) $(VENV_OLDEST) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
