# The commands of the project. `make demo` and `make test` need only Python ≥ 3.11 with venv, git and make.
SHELL := bash
PORT ?= 8000
KUMIAI_HOME ?= .kumiai
export KUMIAI_HOME
BIN := .venv/bin
WORKERS ?= 2

.PHONY: help demo demo-stop demo-reset demo-cluster demo-cluster-reset check test install install-dev install-models install-pictures install-speech test-models test-vllm \
  evidence-vllm evidence-ledger evidence-budget evidence-region evidence-faults evidence-isolation evidence-guard locks bench screenshots

help:
	@echo "make demo          start everything on one address and print how to sign in"
	@echo "make demo-stop     end it from another shell        make demo-reset    start over"
	@echo "make demo-cluster  the same on PostgreSQL, PgBouncer, Valkey and Keycloak, without Docker (with it: compose.yaml)"
	@echo "make check         format, types, contracts, unit tests (≤ 4 min)"
	@echo "make test          all tests a newcomer can run"
	@echo "make bench         gateway side by side with its peers"
	@echo "make evidence-faults   every fault, twenty times; make evidence-isolation   who tries to get across between towns"
	@echo "make evidence-guard    what the guard finds, misses and takes"
	@echo "make evidence-budget   a thousand calls at once on a budget for fifty; make evidence-region   sixty towns, one to four gateways"
	@echo "make evidence-ledger   a million quota operations under a thousand kills; make evidence-vllm   a real vLLM"

install:
	@requirements/install.sh runtime

install-dev:
	@requirements/install.sh dev

install-models:
	@requirements/install.sh models

# Letters in pictures are read before they leave; without it a picture counts as unreadable.
install-pictures: install
	@requirements/install.sh pictures

# Recordings are measured and heard by it; without it none is sent anywhere.
install-speech: install
	@requirements/install.sh speech

demo: install
	@$(BIN)/kumiai demo --port $(PORT)

demo-stop: install
	@$(BIN)/kumiai demo-stop

demo-reset: install
	@$(BIN)/kumiai demo-reset --port $(PORT)

demo-cluster: install-dev
	@$(BIN)/kumiai demo-cluster --port $(PORT)

demo-cluster-reset: install-dev
	@$(BIN)/kumiai demo-cluster --port $(PORT) --reset

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest tests/unit apps -m "not browser and not real" -n $(WORKERS) --timeout 120

test: install-dev
	$(BIN)/pytest -n $(WORKERS)

test-models: install-models
	KUMIAI_REQUIRE_REAL=1 $(BIN)/pytest tests/contract -n 0

test-vllm: install-dev
	tests/vllm/run.sh

evidence-vllm: install-dev
	tests/vllm/evidence.sh

evidence-faults: install-dev
	tests/faults/evidence.sh

evidence-isolation: install-dev
	tests/security/evidence.sh

evidence-guard: install-dev
	tests/evaluation/guard/evidence.sh

evidence-budget: install-dev
	tests/integration/budget/evidence.sh

evidence-region: install-dev
	loadtests/region/evidence.sh

evidence-ledger: install-dev
	loadtests/ledger/evidence.sh

bench: install-dev
	loadtests/bench/run.sh

# The pictures of the documentation, from the running product; needs Chromium.
screenshots: install-dev
	$(BIN)/python -m tests.e2e.screenshots docs/images
	$(BIN)/python -m tests.ui.screenshots

# Versions younger than a week are left to others to try. No addresses end up in the files.
COOLDOWN = $(shell date -u -d '7 days ago' +%Y-%m-%d)
locks: install-dev
	for name in bootstrap runtime dev models pictures speech; do \
	  $(BIN)/uv pip compile -q --upgrade --exclude-newer $(COOLDOWN) --generate-hashes --universal \
	    --python-version 3.11 --no-header requirements/$$name.in -o requirements/$$name.lock; done
