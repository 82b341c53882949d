# Two commands for a newcomer: `make demo` and `make test`. Each installs what it needs into .venv.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# The first interpreter that is new enough; `make PYTHON=/path/to/python demo` uses another one.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-all fuzz bench docs pictures lint format typecheck check clean

help:
	@echo 'make demo      the example pipelines on real files, against an embedded server'
	@echo 'make test      the test suite'
	@echo 'make test-all  the test suite on every Python (3.11, 3.12, 3.13) that this machine has'
	@echo 'make fuzz      a coverage-guided fuzzer on the code that parses a peer'"'"'s bytes, three minutes'
	@echo 'make bench     speed, latency and memory beside other systems, some twelve minutes (BENCH=--quick: two)'
	@echo 'make docs      the documentation as a site, build/docs/index.html'
	@echo 'make pictures  draws the pictures of the documentation anew'
	@echo 'make check     ruff (lint and format) and pyright strict'

$(READY): pyproject.toml
	@if [ -z '$(PYTHON)' ]; then echo 'Python 3.11 or newer is needed; give its path: make PYTHON=/path/to/python3 ...' >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m rx_client.examples files
	$(BIN)/python -m rx_client.examples parallel

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-all:
	@.ci/test-all

fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks $(BENCH)

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/zensical build --clean --strict

pictures: $(READY)
	$(BIN)/python -m tests.docs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY)
	$(BIN)/pyright

check: lint typecheck

clean:
	rm -rf .venv .venvs .pytest_cache .ruff_cache .hypothesis dist build
