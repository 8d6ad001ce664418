.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS := site
# Every command runs out of the project's own environment, whatever the shell has.
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONPATH :=
# Of the shell's settings none may lead the tests or the demo elsewhere.
unexport DBT_PROFILES_DIR DBT_PROJECT_DIR DBT_TARGET_PATH
# The tests start hundreds of processes; each would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint sample build build-changed docs format bench soak clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## The whole story on an embedded server, from calls to monthly totals and costs
	@token-tracking demo

test: $(VENV)/.dev  ## Every test (PYTEST='-k name' for some)
ifdef PYTEST
	@python -m pytest $(PYTEST)
else
	@python -m pytest -n 3 --dist loadgroup -m 'not timed'
	@python -m pytest -m timed
endif

lint: $(VENV)/.dev  ## Formatting, lint, types and SQL style
	ruff format --check .
	ruff check .
	basedpyright
	python -m tests.lint_sql

sample: $(VENV)/.demo  ## A few days of usage into the database of PGHOST, PGDATABASE ...
	@token-tracking schema apply
	@token-tracking load examples/usage.jsonl

build: $(VENV)/.demo  ## The whole warehouse in that database (STATE=folder keeps the manifest for build-changed)
	@token-tracking schema apply
	@dbt build $(if $(STATE),--target-path '$(STATE)')
	@$(if $(STATE),cp dbt_project.yml '$(STATE)')

# dbt's comparison of states leaves out the vars, on which every total depends.
build-changed: $(VENV)/.demo  ## What differs from STATE's build and all that depends on it (everything, where vars differ), into the schema DBT_SCHEMA
	@test -n '$(STATE)' || { echo 'build-changed needs STATE=folder, which `make build STATE=folder` made'; exit 1; }
	@token-tracking schema apply
	@if test -f '$(STATE)/dbt_project.yml' && python -c 'import sys, yaml; \
		one, other = (yaml.safe_load(open(path))["vars"] for path in sys.argv[1:]); sys.exit(one != other)' \
		dbt_project.yml '$(STATE)/dbt_project.yml'; \
	then dbt build --selector changed --defer --state '$(STATE)'; \
	else echo 'Not the vars of the build in $(STATE), so everything is built.'; dbt build; fi

docs: $(VENV)/.demo  ## The dbt docs site, one file without network: site/index.html (with PGHOST, columns' types too)
	@dbt --quiet parse --target-path target/docs
	@dbt --quiet docs generate --static --target-path target/docs $(if $(PGHOST),,--no-compile --empty-catalog)
	@mkdir -p '$(DOCS)' && cp target/docs/static_index.html '$(DOCS)/index.html'
	@echo 'Open $(DOCS)/index.html in a browser.'

format: $(VENV)/.dev  ## Put the code into its form
	ruff format .
	ruff check --fix .

bench: $(VENV)/.dev  ## Measure, side by side with peers (BENCH=name for one)
	@python -m benchmarks $(BENCH)

soak: $(VENV)/.dev  ## The same at length: faults, bounds, histories (SOAK_SECONDS=600, HISTORIES=500, SEED=n replays)
	@HISTORIES=$${HISTORIES:-500} python -m pytest -n 2 --timeout 0 tests/warehouse/test_histories.py
	@SOAK_SECONDS=$${SOAK_SECONDS:-600} python -m pytest -s tests/client/test_faults.py tests/client/test_bounds.py tests/event/test_properties.py

clean:  ## Stop the demo's server and remove all that was made here
	@if [ -x $(BIN)/token-tracking ]; then token-tracking db stop; fi
	case "$$(readlink .token-tracking/postgres)" in /var/tmp/token-tracking-*/data) \
		rm -rf "$$(dirname "$$(readlink .token-tracking/postgres)")";; esac
	rm -rf .token-tracking $(VENV) target logs site

# pip has no lock file of its own: the constraints pin every package, pyproject says what is needed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'token-tracking needs Python 3.11 or newer: make PYTHON=/path/to/python3 ...'; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo 'This Python cannot make environments (Debian: apt-get install python3-venv).'; exit 1; }

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'Installing what the demo needs into $(VENV): once, about a minute.'
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[cli,warehouse,embedded,prices]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'Installing what the tests need into $(VENV): once, about two minutes.'
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev]'
	@touch $@ $(VENV)/.demo
