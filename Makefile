# Two commands do everything from a fresh clone: `make demo` and `make test`.
# Both set up .venv on their first run and reuse it until pyproject.toml, constraints.txt, csrc/ or this file changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
# With a GPU pip chooses torch's newest CUDA build; without one the constraints pin the version.
CONSTRAINTS := $(if $(filter-out 0,$(GPU)),,-c constraints.txt)
# npm writes this file when all the others are there.
MERMAID := tests/browser/node_modules/.package-lock.json
CSRC := $(wildcard csrc/* csrc/kernels/*)
SETUP := pyproject.toml constraints.txt Makefile CMakeLists.txt $(CSRC)

# pip install, with a word on what it does.
SET_UP := $(BIN)/python tools/set_up.py

.PHONY: help demo test test-all test-long test-peers test-world test-browser test-c test-native sanitize test-aarch64 test-no-compiler check check-cpp check-js docs fuzz faults bench bench-peers install-all clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.train  ## the whole tour: train on real data, score, label a sentence (under two minutes once installed)
	$(BIN)/tidegate demo
	@echo "The commands of README.md and docs/ work as they stand there after: . $(BIN)/activate"

# Processes that share the tests, a core each; 0: none but pytest itself.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test: $(VENV)/.test  ## the tests of every room, and of each big grid a part (two and a half minutes on two cores, once installed)
	$(PYTEST)
	@echo "All of every grid, and what takes long: make test-all"

test-all: $(VENV)/.test  ## all tests that need no other framework
	$(PYTEST) -m 'not c'

test-long: $(VENV)/.test  ## what test-all has beyond test
	$(PYTEST) -m 'long and not c'

test-peers: $(VENV)/.peers  ## our figures held against other people's programs
	$(BIN)/python -m pytest tests/peers -m peers

test-world: $(VENV)/.world  ## our recipes on other people's engines: Ray, Spark, Dask (Debian: default-jre-headless)
	$(BIN)/python -m pytest tests/world -m world

test-browser: $(VENV)/.browser $(MERMAID)  ## our diagrams drawn by Mermaid in a real browser (Debian: chromium and npm)
	$(BIN)/python -m pytest tests/browser -m browser

test-c: $(VENV)/.test  ## exported C headers: GCC, Clang, C++, sanitizers, 32-bit ARM, big-endian, AVR (Debian: clang gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-user qemu-system-arm gcc-s390x-linux-gnu libc6-dev-s390x-cross gcc-avr avr-libc simavr)
	$(BIN)/python -m pytest tests/export -m c

# The system's CMake, where there is one: then the kernels' own tests need no Python.
CMAKE := $(shell command -v cmake || echo $(BIN)/cmake)
CMAKE_SETUP := $(if $(shell command -v cmake),,$(VENV)/.dev)

# The kernels as a library: benchmarks/c_step.py times them without Python.
build/native/libtidegate_core.a: CMakeLists.txt $(CSRC)
	$(CMAKE) -S . -B build/native -DTIDEGATE_TESTS=ON
	$(CMAKE) --build build/native --target tidegate_core -j 2
	@touch $@

test-native: $(CMAKE_SETUP)  ## the C++ kernels' own tests, on every instruction set of this machine
	$(CMAKE) -S . -B build/native -DTIDEGATE_TESTS=ON
	$(CMAKE) --build build/native -j 2
	build/native/test_gru
	build/native/test_update

sanitize: $(CMAKE_SETUP)  ## the same under the sanitizers: addresses and undefined behaviour, then threads
	$(CMAKE) -S . -B build/address -DTIDEGATE_TESTS=ON -DTIDEGATE_SANITIZE=address,undefined
	$(CMAKE) --build build/address -j 2
	build/address/test_gru 2
	build/address/test_update
	$(CMAKE) -S . -B build/thread -DTIDEGATE_TESTS=ON -DTIDEGATE_SANITIZE=thread
	$(CMAKE) --build build/thread -j 2
	setarch $(shell uname -m) -R build/thread/test_gru 2  # its shadow memory needs addresses that are not randomised
	setarch $(shell uname -m) -R build/thread/test_update

test-aarch64: $(CMAKE_SETUP)  ## the same for 64-bit ARM under qemu (Debian: g++-aarch64-linux-gnu and qemu-user)
	$(CMAKE) -S . -B build/aarch64 -DTIDEGATE_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	$(CMAKE) --build build/aarch64 -j 2
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/test_gru 1
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/test_update

test-no-compiler: $(VENV)/bin/python  ## that the package installs without a C++ compiler, as a pure one
	rm -rf build/pure
	CC=false CXX=false $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/pure .
	ls build/pure/tidegate-*-py3-none-any.whl

check: $(VENV)/.dev check-cpp  ## linters, format and types, of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is reported there is an error or costs time or portability; the rest of its checks are matters of taste.
check-cpp:  ## cppcheck on the kernels (Debian: cppcheck)
	cppcheck --std=c++17 --language=c++ --enable=warning,performance,portability --inline-suppr --error-exitcode=1 --quiet \
		-DTIDEGATE_X86 -Icsrc csrc/*.cpp csrc/tests/*.cpp

check-js: $(MERMAID)  ## eslint over the scripts of our pages (Debian: npm)
	tests/browser/node_modules/.bin/eslint --config tests/browser/eslint.config.mjs 'src/**/*.js'

docs: $(VENV)/.docs $(if $(shell command -v npm),$(MERMAID))  ## the documentation as a site in build/site: every link and reference is checked
	$(BIN)/python tools/make_site.py

fuzz: $(VENV)/.test  ## odd and damaged tables, settings, runs, states and streams for every reader, 20 seconds each
	$(BIN)/python tools/fuzz.py

faults: $(VENV)/.test  ## processes killed, disks filled and cables pulled while Tidegate works, three rounds of each case (some of them need Linux and root)
	$(BIN)/python tools/faults.py

bench: $(VENV)/.bench build/native/libtidegate_core.a  ## the measurements behind docs/speed.md, docs/quality.md and others (about half an hour, once 2 GB of peers are there; nothing else should run)
	$(BIN)/python benchmarks/layer_speed.py
	$(BIN)/python benchmarks/layer_overhead.py
	$(BIN)/python benchmarks/short_calls.py
	$(BIN)/python benchmarks/quantised.py
	$(BIN)/python benchmarks/cell_loop.py
	$(BIN)/python benchmarks/bfloat16.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/table_to_sequences.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/inspect_speed.py
	$(BIN)/python benchmarks/log_gates_cost.py
	$(BIN)/python benchmarks/stream_speed.py
	$(BIN)/python benchmarks/stream_speed.py --rows 1000000
	$(BIN)/python benchmarks/c_step.py --save
	$(BIN)/python benchmarks/ship.py
	$(BIN)/python benchmarks/reach.py
	$(BIN)/python benchmarks/carry_state.py

bench-peers: $(VENV)/.bench  ## what benchmarks/layer_speed.py compares with, into .venv (about 2 GB)

clean:  ## remove .venv and what tests and the demo leave
	rm -rf $(VENV) build tests/browser/node_modules .pytest_cache .hypothesis .ruff_cache .mypy_cache tidegate-demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Tidegate needs Python 3.10 or newer; $(PYTHON) is older. Name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train]'
	@touch $@

$(VENV)/.test: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test]'
	@touch $@ $(VENV)/.train

$(VENV)/.peers: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test,peers]'
	@touch $@

$(VENV)/.world: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test,world]'
	@touch $@

$(VENV)/.browser: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test,browser]'
	@touch $@

$(MERMAID): tests/browser/package.json tests/browser/package-lock.json
	cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(VENV)/.bench: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test,bench]'
	@touch $@ $(VENV)/.train $(VENV)/.test

$(VENV)/.docs: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,docs]'
	@touch $@

# One installation for all groups, which may then run side by side.
install-all: $(VENV)/.all

$(VENV)/.all: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test,peers,browser,docs,dev]'
	@touch $@ $(VENV)/.train $(VENV)/.test $(VENV)/.peers $(VENV)/.browser $(VENV)/.docs $(VENV)/.dev

$(VENV)/.dev: $(SETUP) | $(VENV)/bin/python
	@$(SET_UP) $(CONSTRAINTS) -e '.[train,test,dev]'
	@touch $@
