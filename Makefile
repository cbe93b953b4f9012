# `make` alone lists the targets. Everything is made inside the checkout: .venv, .dev and build.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test faults fuzz lint bench env test-env clean help FORCE

# The first of these that is new enough makes the environment.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
PYTEST_ARGS ?=

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
WITH_SERVERS := PATH="$(CURDIR)/$(BIN):$$PATH" tests/machine/with-servers

# Hundreds of processes start while the tests go: none of them is to compile again what the one before it has compiled.
unexport PYTHONDONTWRITEBYTECODE

# What pip downloads stays in the checkout too, unless the person has chosen a place for it.
export PIP_CACHE_DIR ?= $(CURDIR)/.dev/pip

demo: env ## run the main job: a release that succeeds, and one that fails and is taken back
	@$(BIN)/python examples/demo/demo.py

test: lint ## lint, then all tests, with real servers (PYTEST_ARGS='-k saga' for some of them)
	@$(WITH_SERVERS) tests/machine/side-by-side $(BIN)/python -m pytest $(PYTEST_ARGS)

faults: test-env ## inject faults in the long form, about half an hour, and write docs/faults.md (LONGSHORE_FAULTS_SEED=n)
	@rm -rf build/faults
	@LONGSHORE_FAULTS=long $(WITH_SERVERS) --redis-only $(BIN)/python -m pytest -s tests/faults tests/unit/test_checked.py \
	  $(PYTEST_ARGS)
	@PYTHONPATH=. $(BIN)/python tests/faults/figures.py

FUZZ_SECONDS ?= 600

fuzz: test-env ## make up plans, requests, messages, commands and entries, ten minutes each (FUZZ_SECONDS=n)
	@LONGSHORE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz $(PYTEST_ARGS)

lint: test-env ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env ## measure on a real Redis, and print the figures
	@$(WITH_SERVERS) --redis-only $(BIN)/python benchmarks/bench.py

env: .venv/.env ## make .venv with all that Longshore needs to run
test-env: .venv/.test-env ## make .venv with all that the tests need as well

.venv/.env: pyproject.toml .venv/.files
	@echo "installing Longshore into .venv"
	@$(PIP_INSTALL) -e '.[docker,embedded,flower,metrics,testing]'
	@touch $@

# The environment of the tests holds the other one, so both are up to date afterwards.
.venv/.test-env: pyproject.toml .venv/.files
	@echo "installing Longshore and its test tools into .venv"
	@$(PIP_INSTALL) -e '.[docker,embedded,flower,metrics,test]'
	@touch $@ .venv/.env

# The installed package is a tree of links, one a file: a file that is new or gone needs an install.
.venv/.files: FORCE | $(BIN)/python
	@find orchestration tasks workers -type f ! -name '*.pyc' | LC_ALL=C sort >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BIN)/python:
	@for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making .venv with $$($$python --version)"; \
	    $$python -m venv --clear .venv || { rm -rf .venv; exit 1; }; \
	    exit 0; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer among: $(PYTHON) (name another: make PYTHON=...)" >&2; exit 1

clean: ## remove all that was made here, and what a killed test run left running
	@if [ -e .dev/engine/state.json ]; then tests/machine/with-servers true; fi
	rm -rf .venv .dev build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

help: ## print this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
