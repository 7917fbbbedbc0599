# What a person runs and what CI runs are the same targets.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test chaos check format clean

setup: .venv/.made                 ## the environment in .venv, made once

.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup                        ## train on two workers, publish, serve, ask
	@$(BIN)/python demo.py

AT_ONCE ?= 2
test: setup                        ## unit tests and tests with real processes
	$(BIN)/python -m pytest -q --numprocesses=$(AT_ONCE) --dist=loadfile

ROUNDS ?= 50
chaos: setup                       ## harm runs in every way, compare their weights, print a table
	$(BIN)/python -m tests.processes.chaos --rounds=$(ROUNDS)

check: setup                       ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup                      ## what `check` would ask for, done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:                             ## everything that the targets above made
	rm -rf .venv runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache
