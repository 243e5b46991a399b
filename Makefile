# Every target creates .venv when it is absent; delete .venv to start afresh.
PYTHON ?= python3.11
BIN := .venv/bin
THREADS ?= 2

.PHONY: demo test lint format clean

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/lidarssl demo

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(THREADS) --dist worksteal

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist src/*.egg-info
