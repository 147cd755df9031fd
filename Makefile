# `make demo` and `make test` do all the set-up that they need.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
EVIDENCE := docs/evidence.md $(sort $(wildcard docs/evidence/*.md))
COMPARED := margin;entropy;confidence;boe;boe:tolerance=none;boe:preset=paper;threshold:value=0.99;boe+threshold:value=0.99

.PHONY: demo test coverage test-oldest lint format bench micro gpu plots evidence search report wheel clean
.DEFAULT_GOAL := demo

# Compiles csrc/ too, where there is a compiler.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

.PHONY: venv
venv: $(VENV)/.installed

# What is large and needed for its own tests only: the demo goes without.
$(VENV)/.extras: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) \
		lm-eval datatrove diffusers mauve-text
	touch $@

demo: venv
	$(BIN)/boe demo

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

test: venv $(VENV)/.extras
	$(PYTEST)

# What the tests reach, line by line; takes a third longer.
coverage: venv $(VENV)/.extras
	$(PYTEST) --cov --cov-report=term

# The same with the oldest versions that are supported, in an environment of its own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every figure in README.md comes from what this writes to bench/results/, and is filled in.
bench: venv
	$(BIN)/python -m bench
	$(BIN)/boe compare --puzzles 100 --difficulty hard --tokens-per-step 1,3,5 \
		--samplers '$(COMPARED)' --json bench/results/sudoku-hard.json
	$(BIN)/python -m bench readme
	$(BIN)/boe report README.md

# A minute; for seeing whether a change made something slower.
micro: venv
	$(BIN)/python -m pytest -c bench/micro/pytest.ini bench/micro \
		--benchmark-json=bench/results/micro-cpu.json

# docs/benchmarks.md. Nothing is installed: a GPU's machine has the PyTorch that fits it.
gpu:
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m bench gpu $(GPU_OPTIONS)

plots: venv
	$(BIN)/python -m bench plot

# docs/evidence.md and its pages: every study from its plan, resumed if interrupted, then these.
evidence: venv
	$(BIN)/boe eval $(sort $(wildcard docs/evidence/*/plan.toml))
	$(BIN)/boe report $(EVIDENCE)

# docs/search.md, in the same way.
search: venv
	$(BIN)/boe eval $(sort $(wildcard bench/results/search/*/plan.toml))
	$(BIN)/boe report docs/search.md

# All documents from the results that are stored.
report: venv
	$(BIN)/boe report $(EVIDENCE) docs/search.md README.md

wheel: venv
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .venv-oldest build dist .pytest_cache .mypy_cache .ruff_cache .coverage
