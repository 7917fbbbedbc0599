# What a person runs and what CI runs are the same targets.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test exactness chaos hangs ssh slurm kubernetes search pages ray peers bench pictures check format clean

help:                              ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: .venv/.made                 ## the environment in .venv, made once

.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup                        ## train on two workers, publish, serve, ask
	@$(BIN)/python demo.py

AT_ONCE ?= 2
test: setup                        ## unit tests and tests with real processes
	$(BIN)/python -m pytest -q --numprocesses=$(AT_ONCE) --dist=loadfile --no-loadscope-reorder

ROUNDS ?= 50
ELASTIC_ROUNDS ?= 10
chaos: setup                       ## harm runs in every way, compare their weights, print a table
	$(BIN)/python -m tests.processes.chaos --rounds=$(ROUNDS)
	$(BIN)/python -m tests.processes.chaos_elastic --rounds=$(ELASTIC_ROUNDS)

exactness: setup                   ## all cases beside plain Keras; an hour; writes docs/exactness.md, docs/tried.md
	$(BIN)/python -m tests.exactness.table
	$(BIN)/python -m tests.structures.table

hangs: setup                       ## let runs stand still in every way, compare their weights
	$(BIN)/python -m tests.processes.hangs

SSH_ROUNDS ?= 8
ssh: setup                         ## workers on other hosts, by real sshd in network namespaces; needs root
	$(BIN)/python -m pytest -q -s tests/processes/test_ssh.py tests/processes/ssh_long.py tests/processes/test_slots.py tests/processes/search_ssh.py
	$(BIN)/python -m tests.processes.ssh_chaos --rounds=$(SSH_ROUNDS)

slurm: setup                       ## training in a real Slurm cluster (needs root): nodes and jobs end in every way
	$(BIN)/python -m pytest -q tests/processes/test_slurm.py tests/processes/slurm_cases.py tests/processes/slurm_training.py tests/processes/test_slots.py tests/processes/search_slurm.py

kubernetes: setup                  ## runs in processes that look like pods (needs root): pods are lost in every way
	$(BIN)/python -m pytest -q tests/processes/test_kubernetes.py tests/processes/kubernetes_cases.py

search: setup                      ## kill a search of 30 trials ten times, compare with an undisturbed one; ten minutes
	$(BIN)/python -m tests.processes.search_chaos

pages: setup                       ## a search in optuna-dashboard and TensorBoard, in a real browser (needs chromium)
	$(BIN)/python -m tests.processes.search_pages

ray: .ray/.made                    ## tests of examples/ray on a real Ray, in an environment of its own
	.ray/bin/python -m pytest -q tests/ray

.ray/.made: examples/ray/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .ray
	.ray/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r $< -e '.[train]'
	touch $@

peers: .bench/.made                ## what benchmarks compare with, in an environment of its own

.bench/.made: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .bench
	.bench/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

BENCHMARKS ?= training_peers bfloat16_loss recovery checkpoint_cost input_wait network serving_load sizing serving_publications
bench: setup peers                 ## the figures, an hour and a half on a quiet machine; then pictures
	@for each in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$each || exit 1; done
	@$(MAKE) --no-print-directory pictures

pictures: peers                    ## docs/pictures from the newest results
	@.bench/bin/python -m benchmarks.pictures

check: setup                       ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup                      ## what `check` would ask for, done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:                             ## everything that the targets above made
	rm -rf .venv .bench .ray runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache
