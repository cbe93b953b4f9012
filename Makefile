# `make` alone lists the targets. Everything is made inside the checkout: .venv, .venv-latest, .dev and build.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test check docs diagrams screenshots faults fuzz lint bench env test-env lock latest clean help FORCE

# The first of these that is new enough makes the environments.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Most tests wait for servers, so that two cores serve several at a time. The tests of a module share its workers.
PROCESSES ?= 4

# The tool that writes the lock and installs from it. Another version may order or mark packages differently.
UV := uv==0.13.9
LOCK := requirements.lock
# Every extra that a test, an image or a target needs.
EXTRAS := docker,docs,embedded,flower,metrics,notify,test

BIN = .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
# uv installs in five seconds what takes pip a minute. If uv fails, for example because it does not reach the index that
# pip is configured for, pip installs.
UV_INSTALL = $(PIP_INSTALL) '$(UV)' && $(BIN)/uv --no-config pip install --quiet --python $(BIN)/python
WITH_SERVERS = PATH="$(CURDIR)/$(BIN):$$PATH" tests/machine/with-servers

FAST_TESTS = $(BIN)/python -m pytest -n 2 tests/unit tests/store $(PYTEST_ARGS)

# Hundreds of processes start while the tests go: none of them is to compile again what the one before it has compiled.
unexport PYTHONDONTWRITEBYTECODE

# What pip and uv download stays in the checkout too, unless the person has chosen a place for it.
export PIP_CACHE_DIR ?= $(CURDIR)/.dev/pip
export UV_CACHE_DIR ?= $(CURDIR)/.dev/uv-cache
# uv reads neither the index nor the certificates of pip.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
export UV_SYSTEM_CERTS ?= true

demo: env ## run the demo: a release that succeeds, and one that fails and is compensated
	@$(BIN)/python examples/demo/demo.py

test: lint ## lint, then all tests, with real servers (PYTEST_ARGS='-k saga' for some of them)
	@$(WITH_SERVERS) $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint ## what to run before each commit: lint, then the unit and store tests
	@$(WITH_SERVERS) --redis-only $(FAST_TESTS)

faults: env ## inject faults in the long form, about half an hour, and write docs/reference/faults.md (LONGSHORE_FAULTS_SEED=n)
	@rm -rf build/faults
	@LONGSHORE_FAULTS=long $(WITH_SERVERS) --redis-only $(BIN)/python -m pytest -s tests/faults \
	  tests/unit/orchestration/test_saga_model.py tests/unit/tasks/control/test_plan_rules.py \
	  $(PYTEST_ARGS)
	@PYTHONPATH=. $(BIN)/python tests/faults/figures.py

docs: env ## build the documentation site in build/site, without network (then open build/site/index.html)
	@$(BIN)/python -m docs._site.reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict

# The version that drew the committed diagrams.
MERMAID := mermaid@11.17.2
diagrams: env ## draw the Mermaid diagrams of the pages that have no drawing in docs/diagrams (needs npm)
	@mkdir -p .dev/mermaid && cd .dev/mermaid && tar xzf "$$(npm pack --silent $(MERMAID))"
	@$(WITH_SERVERS) $(BIN)/python -m docs._site.diagrams .dev/mermaid/package/dist/mermaid.min.js

screenshots: env ## draw docs/screenshots anew: Flower's pages in Chromium, and commands of the terminal
	@$(WITH_SERVERS) $(BIN)/python -m docs._site.screenshots

FUZZ_SECONDS ?= 600

fuzz: env ## run each test in tests/fuzz with random input for ten minutes (FUZZ_SECONDS=n)
	@LONGSHORE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz $(PYTEST_ARGS)

lint: env ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env .dev/dbos/.made ## measure beside Celery and DBOS, and hold the figures against targets (BENCH_ARGS=--help)
	@$(WITH_SERVERS) --redis-only $(BIN)/python -m benchmarks $(BENCH_ARGS)

env: .venv/.env ## make .venv with the locked versions of everything that the targets need
test-env: env

lock: | .dev/uv/bin/python ## write requirements.lock anew, with the newest versions that pyproject.toml admits
	@.dev/uv/bin/python -m pip install --quiet --quiet --disable-pip-version-check '$(UV)'
	@.dev/uv/bin/uv --no-config pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --all-extras --group build pyproject.toml -o $(LOCK)

latest: BIN = .venv-latest/bin
latest: | .venv-latest/bin/python ## install the newest versions that pyproject.toml admits into .venv-latest, and run the fast tests
	@$(PIP_INSTALL) --upgrade --upgrade-strategy eager -e '.[$(EXTRAS)]'
	@$(BIN)/python -m pip freeze --exclude-editable
	@$(WITH_SERVERS) --redis-only $(FAST_TESTS)

.venv/.locked: $(LOCK) | $(BIN)/python
	@echo "installing the packages of $(LOCK) into .venv"
	@$(UV_INSTALL) --require-hashes -r $(LOCK) \
	  || { echo "uv has failed; pip installs the packages, which takes a minute"; \
	       $(PIP_INSTALL) --require-hashes -r $(LOCK); }
	@touch $@

# The lock holds the build backend too: pip would fetch the newest one for an isolated build.
.venv/.env: .venv/.locked pyproject.toml .venv/.files
	@echo "installing Longshore into .venv"
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# The installed package is a tree of links, one a file: a file that is new or gone needs an install.
.venv/.files: FORCE | $(BIN)/python
	@find orchestration tasks workers -type f ! -name '*.pyc' | LC_ALL=C sort >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# A peer of the benchmarks. Without it, the benchmarks have no figures of DBOS.
.dev/dbos/.made: benchmarks/dbos.txt | .dev/dbos/bin/python
	@.dev/dbos/bin/python -m pip install --quiet --quiet --disable-pip-version-check -r $< && touch $@ \
	  || echo "DBOS cannot be installed, so it is not measured"

.venv/bin/python .venv-latest/bin/python .dev/uv/bin/python .dev/dbos/bin/python:
	@for python in $(PYTHON); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(@:/bin/python=) with $$($$python --version)"; \
	    $$python -m venv --clear $(@:/bin/python=) || { rm -rf $(@:/bin/python=); exit 1; }; \
	    exit 0; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer among: $(PYTHON) (name another: make PYTHON=...)" >&2; exit 1

clean: ## remove all that was made here, and what a killed test run left running
	@if [ -e .dev/engine/state.json ]; then tests/machine/with-servers true; fi
	rm -rf .venv .venv-latest .dev build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

help: ## print this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
