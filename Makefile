# `make demo` and `make test` do all the set-up that they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
COMPARED := margin;entropy;confidence;boe;boe:tolerance=none;boe:preset=paper

.PHONY: demo test lint format bench wheel clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: venv
venv: $(VENV)/.installed

demo: venv
	$(BIN)/boe demo

test: venv
	$(BIN)/python -m pytest --cov --cov-report=term

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every figure in README.md and docs/ comes from what this writes to bench/results/.
bench: venv
	$(BIN)/python -m bench
	$(BIN)/boe compare --puzzles 100 --difficulty hard --tokens-per-step 1,3,5 \
		--samplers '$(COMPARED)' --json bench/results/sudoku-hard.json

wheel: venv
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage
