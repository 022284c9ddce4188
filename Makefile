# `make up` and `make test` are all that a fresh checkout needs. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# Tried, not only looked up: a version switcher leaves names behind that do not run. 3.12 and 3.11 come first because there
# every part has a wheel, Redis too.
PYTHON ?= $(shell for name in python3.12 python3.11 python3 python3.13 python3.14 python; do \
  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
JOBS ?= 2
SEED ?= 1
CALLS ?= 20000

.PHONY: help install up test check bench chaos simulate docs lock

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv from the lock file (the other commands do it when needed)

$(STAMP): requirements.lock pyproject.toml
	@"$(or $(PYTHON),false)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Tollgate needs Python 3.11 or later; install it, or name it: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
	  echo "Python cannot make a virtual environment here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing what requirements.lock names; this takes a minute or two, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: $(STAMP) ## Run a complete Tollgate here; options: make up ARGS="--port 9000"
	@exec $(BIN)/tollgate up $(ARGS)

test: $(STAMP) ## Run all tests, two files at a time; options: make test ARGS="-k money" JOBS=4
	@command -v nginx >/dev/null || test -x /usr/sbin/nginx || \
	  echo "Note: nginx is not installed (Debian: nginx-light); the test behind a reverse proxy is skipped."
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile $(ARGS)

check: $(STAMP) ## Look for faults without running: style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Measure speed; see benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(STAMP) ## Kill, stop, fill and replay in full numbers (half an hour); `make test` has them in short
	TOLLGATE_CHAOS=full $(BIN)/pytest -q tests/chaos $(ARGS)

simulate: $(STAMP) ## Whole calls in simulated time, with faults; options: make simulate SEED=7 CALLS=100000
	@exec $(BIN)/python -m tests.simulation --seed $(SEED) --calls $(CALLS) $(ARGS)

docs: $(STAMP) ## Write the pages of docs/reference from the code
	$(BIN)/python -m tests.house.reference
	$(BIN)/python -m tests.house.parameters

lock: $(STAMP) ## Choose newer versions within pyproject.toml and write requirements.lock
	@command -v uv >/dev/null || { echo "This needs uv: pip install uv" >&2; exit 1; }
	@# setuptools builds our own package, without a download outside the lock.
	echo 'setuptools>=77' | uv pip compile pyproject.toml - --extra embedded --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-index-url --no-header --upgrade --quiet -o requirements.lock
