# `make up` and `make test` are all that a fresh checkout needs. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# Tried, not only looked up: a version switcher leaves names behind that do not run. 3.12 and 3.11 come first because there
# every part has a wheel, Redis too.
PYTHON ?= $(shell for name in python3.12 python3.11 python3 python3.13 python3.14 python; do \
  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v $$name && break; done)
VENV := .venv
NODE_CLIENTS := tests/compat/node/node_modules
CLIENTS := .compat/python/.installed .compat/openapi/.installed .compat/llama-index/.installed $(NODE_CLIENTS)/.installed
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
JOBS ?= 2
SEED ?= 1
CALLS ?= 20000

.PHONY: help install up test check bench chaos simulate docs lock

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	@missing=; for place in $(CLIENTS); do test -e $$place || missing=yes; done; test -z "$$missing" || \
	  echo "Note: not all clients of tests/compat are installed (make clients); the tests of those that are not are skipped."
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile $(ARGS)

check: $(STAMP) ## Look for faults without running: style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clients: $(CLIENTS) ## Install the clients that people call Tollgate with, for tests/compat alone

# Environments of their own: these clients and what they need must never be among what Tollgate needs.
.compat/%/.installed: tests/compat/requirements/%.txt
	@test -x .compat/$*/bin/python || "$(PYTHON)" -m venv .compat/$*
	@echo "Installing what $< names; this takes a minute, once."
	@.compat/$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Without Node.js there is a note instead, and the tests of its clients are skipped.
$(NODE_CLIENTS)/.installed: tests/compat/node/package-lock.json
	@if command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then \
	  echo "Installing what $< names."; \
	  cd tests/compat/node && npm ci --ignore-scripts --no-audit --no-fund --silent && touch node_modules/.installed; \
	else echo "Note: Node.js 20 or later and npm are not installed; the clients that need them are skipped."; fi

compat: $(STAMP) clients ## Run the clients that people use, as they are, against a running Tollgate
	$(BIN)/pytest -q tests/compat $(ARGS)

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

lock-clients: ## Choose newer versions of the clients in tests/compat; none younger than a week
	@command -v uv >/dev/null || { echo "This needs uv: pip install uv" >&2; exit 1; }
	for name in python openapi llama-index; do uv pip compile tests/compat/requirements/$$name.in --universal --python-version 3.11 \
	  --exclude-newer "$$(date -d '7 days ago' +%F)" --generate-hashes --no-annotate --no-emit-index-url --no-header --upgrade --quiet \
	  -o tests/compat/requirements/$$name.txt; done
	cd tests/compat/node && npm update --save --save-exact --before="$$(date -d '7 days ago' +%F)" --package-lock-only --ignore-scripts \
	  --omit-lockfile-registry-resolved --no-audit --no-fund
