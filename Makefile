# The only commands anyone needs. `make` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
RUN := .venv/bin/

.PHONY: help setup demo test check fmt up chaos bench coverage histories

help:  ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup:  ## prepare the machine (system packages) and .venv; quick when there is nothing to do
	@deploy/setup.sh

fmt:  ## format the code
	@$(RUN)ruff format . && $(RUN)ruff check --fix .

check: setup  ## format, lint, types, import rules, budgets
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports
	$(RUN)pytest -q tests/unit/test_budgets.py tests/unit/test_laws.py

test: setup  ## the whole test suite, libvirt and QEMU parts included
	$(RUN)pytest

demo: setup  ## boot a real guest through the real openstack client (KEEP=1: leave it running; IMAGE=file: boot that)
	@$(RUN)duranova demo

up: setup  ## run the all-in-one in ./.duranova
	@$(RUN)duranova up

SEED ?= 1
ROUNDS ?= 5
chaos: setup  ## kill processes under load, then look whether anything was lost (SEED=1 ROUNDS=5 OPTIONS=--whole)
	@$(RUN)python -m chaos --seed $(SEED) --rounds $(ROUNDS) $(OPTIONS)

bench: ROUNDS = 3
bench: setup  ## measure speed and cost through the API (ROUNDS=3 ONLY="lifecycle reads" PLOT=1 OPTIONS=--help)
	@UV_LINK_MODE=copy .uv/bin/uv sync --quiet --frozen --all-extras --group bench
	@$(RUN)python -m bench --rounds $(ROUNDS) $(if $(ONLY),--only "$(ONLY)") $(if $(PLOT),--plot) $(OPTIONS)

coverage: setup  ## write docs/coverage.md from the routes
	@$(RUN)python -m tests.coverage

histories: setup  ## record this version's workflow histories and fingerprints for the replay tests
	@$(RUN)python -m tests.workflows.record
