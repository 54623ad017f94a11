# The two commands: `make run` shows the platform at work, `make test` checks it. /bin/sh is enough.

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# The one tool that pip installs; everything else comes through it, hash by hash.
UV_VERSION := 0.13.8
PYTHONS := libs services knarr tests bench

.PHONY: help install install-dev run run-tests up stack-up stack-down demo-stack test test-apps try-apps test-stack chaos-stack scenarios crash-test simulate lint format requirements schemas docs bench bench-stack

help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed ## Makes .venv with what one server needs, the Docker client included, and .venv/bin/knarr.

install-dev: .venv/installed-dev ## Adds what the tests need.

run: install ## Starts the platform and shows a push going through it; Ctrl-C stops.
	@mkdir -p -m 700 .knarr
	@$(BIN)/knarr demo

up: install ## Starts the platform and nothing else.
	@$(BIN)/knarr up

stack-up: ## Starts the platform in Docker, with Pulsar, MySQL and a registry, and waits until it is ready.
	docker compose up --build --detach --wait
	@sh deploy/stack-home.sh

stack-down: ## Stops that platform and the apps that it runs; what it keeps stays in its volumes.
	docker compose --profile tools down
	@docker ps --quiet --filter label=io.knarr.installation=$${KNARR_INSTALLATION:-knarr} | xargs --no-run-if-empty docker stop

demo-stack: install stack-up ## Starts it and shows a push going through it, and one that is undone.
	@$(BIN)/python -m knarr.demo_stack

test: install-dev ## Runs everything that needs no Docker: lint, types, import rules, tests.
	@$(MAKE) --no-print-directory --jobs 2 lint run-tests

run-tests: install-dev ## Runs the tests without the lint.
	$(BIN)/pytest -n 2 --dist loadgroup

RUNTIME ?= process
test-apps: install-dev ## Deploys some sixty small apps of many frameworks and asks each: RUNTIME=docker as containers.
	KNARR_TEST_RUNTIME=$(RUNTIME) $(BIN)/pytest -n 2 -m apps tests/apps $(ARGS)

# LIST: a file with one source a line, [NAME=]FOLDER or URL, then @REF and #ROOT where needed; ARGS='--docker'
try-apps: install-dev ## Deploys the folders and git repositories of LIST=FILE, and prints what became of each.
	@$(BIN)/python -m tests.apps $(LIST) $(ARGS)

# What a test needs and is neither named (PULSAR_URL, MYSQL_URL, REGISTRY, DOCKER_HOST, KUBECONFIG) nor can be started
# in Docker is "not run". ARGS goes to pytest: make test-stack ARGS='-k pulsar'
test-stack: install-dev ## Runs the tests of the real stack, on the servers of the environment or started in Docker.
	$(BIN)/python -m tests.stack -n 2 --dist loadgroup $(ARGS)

# ARGS='--seed 4711' runs the same acts again, ARGS='--only kills,mysql' some of them; docs/operate.md says more.
chaos-stack: install-dev ## Breaks two of every service and their servers under a stream of pushes (KUBECONFIG, Docker).
	$(BIN)/python -m tests.chaos $(ARGS)

SETTINGS ?= laptop compose cluster
scenarios: install-dev ## Runs the scenarios in the settings SETTINGS="laptop compose cluster", and writes the README's table.
	$(BIN)/python -m tests.e2e $(SETTINGS)

crash-test: install-dev ## Kills the platform at every crash point of every step and undo, twice each (some ten minutes).
	$(BIN)/pytest -n 2 --dist loadgroup -m crash_points tests/crash

simulate: install-dev ## Runs sagas on virtual time with everything that goes wrong: SEEDS=1000, or SEEDS=4711:5000.
	$(BIN)/python -m tests.simulation.many $(SEEDS)

lint: install-dev ## Checks format, lint rules, types and import rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## Formats the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --quiet

requirements: install ## Compiles the hashed requirement files again, from pyproject.toml.
	$(COMPILE) --extra docker --output-file requirements.txt
	$(COMPILE) --all-extras --constraint requirements.txt --output-file requirements-stack.txt
	$(COMPILE) --group dev --constraint requirements-stack.txt --output-file requirements-dev.txt

schemas: install-dev ## Writes an Avro schema for each message type that has changed.
	$(BIN)/python -m knarr.schemas

bench: install-dev ## Measures speed, scale and memory, and prints a table; BENCH=steps,pages: only these.
	$(BIN)/python -m bench --only "$(BENCH)"

bench-stack: install-dev ## Measures speed on MySQL, Pulsar, a registry and Kubernetes; BENCH=steps,deploys: only these.
	$(BIN)/python -m bench.stack --only "$(BENCH)"

docs: install ## Writes the pages that are generated from the code.
	$(BIN)/python -m knarr.docs

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "knarr needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)'

.venv/installed: requirements.txt pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --quiet --require-hashes --requirements requirements.txt
	$(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/uv pip install --quiet --require-hashes --requirements requirements-dev.txt
	@touch $@
