PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install run demo test check lint bench train lock clean

help: ## Show what make can do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: install ## Set up and run the gateway on embedded defaults
	$(BIN)/gateway serve

demo: install ## Set up and replay real hours: decay, canary, rollback
	$(BIN)/gateway demo

test: $(VENV)/.dev ## Set up and run the whole test suite
	scripts/test $(ARGS)

check: $(VENV)/.dev ## Style, types, import law, documentation
	scripts/check

lint: $(VENV)/.dev ## Format, and mend what can be mended
	scripts/lint

bench: $(VENV)/.dev ## Measure against other servers; ARGS="--help" says what there is
	scripts/bench $(ARGS)

train: $(VENV)/.dev ## Train the demo models again
	$(BIN)/python training/bike-demand/train.py $(ARGS)

lock: $(VENV)/.dev ## Write the lock files anew
	scripts/lock

clean: ## Remove the virtual environment and the state of a run
	rm -rf $(VENV) .gateway

install: $(VENV)/.runtime

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (a minute or two the first time)"
	@if [ ! -e $(VENV)/.dev ]; then $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; fi
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the development tools into $(VENV) (some minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@ $(VENV)/.runtime
