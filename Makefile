# Two commands do everything from a fresh clone: `make demo` and `make test`.
# Both set up .venv on their first run and reuse it until pyproject.toml, constraints.txt or this file changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
# With a GPU pip chooses torch's newest CUDA build; without one the constraints pin the version.
CONSTRAINTS := $(if $(filter-out 0,$(GPU)),,-c constraints.txt)
SETUP := pyproject.toml constraints.txt Makefile

.PHONY: help demo test test-peers check bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.train  ## the whole tour: train on real data, score, label a sentence (under two minutes once installed)
	$(BIN)/tidegate demo

test: $(VENV)/.test  ## all tests that need no other framework (under five minutes once installed)
	$(BIN)/python -m pytest

test-peers: $(VENV)/.peers  ## our figures held against other people's programs
	$(BIN)/python -m pytest tests/peers -m peers

check: $(VENV)/.dev  ## linter, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.train  ## the measurements behind the README's figures (about half an hour; nothing else should run)
	$(BIN)/python benchmarks/layer_overhead.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/table_to_sequences.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/reach.py

clean:  ## remove .venv and what tests and the demo leave
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .mypy_cache tidegate-demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Tidegate needs Python 3.10 or newer; $(PYTHON) is older. Name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(SETUP) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[train]'
	@touch $@

$(VENV)/.test: $(SETUP) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[train,test]'
	@touch $@ $(VENV)/.train

$(VENV)/.peers: $(SETUP) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[train,test,peers]'
	@touch $@

$(VENV)/.dev: $(SETUP) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[train,test,dev]'
	@touch $@
