# Every chore of the project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

WEIR_CACHE ?= $(HOME)/.cache/weir
VENV := .venv
BIN := $(VENV)/bin
FILE ?= examples/quickstart.yaml
export WEIR_CACHE

PYTHON_SOURCES := core operator sidecar engine sim cli tests e2e bench monitoring

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: ## Install what is missing into .venv (uv, locked dependencies, vLLM for this machine)
	@scripts/install

.PHONY: up
up: install ## Serve examples/quickstart.yaml (or FILE=...) at http://127.0.0.1:8000
	@$(BIN)/weir up $(FILE)

.PHONY: down
down: ## Stop what `make up` started
	@if [ -x $(BIN)/weir ]; then $(BIN)/weir down; fi

.PHONY: check
check: install ## Format, lint, types, import contracts, generated files, unit tests
	@scripts/check

.PHONY: integration
integration: install ## Tests against real vLLM on this machine
	@scripts/integration

.PHONY: e2e
e2e: install ## Scenarios on a real cluster (built once and cached, or your KUBECONFIG)
	@scripts/system-packages
	@mkdir -p .weir/durations
	$(BIN)/pytest e2e --durations=50 --durations-min=0.3 | tee .weir/durations/e2e

.PHONY: e2e-images
e2e-images: install ## The README's way to a cluster, on images built here (12 GB, with docker or podman)
	@scripts/system-packages
	WEIR_E2E_IMAGES=1 $(BIN)/pytest e2e/test_readme.py

.PHONY: e2e-scaling
e2e-scaling: install ## Autoscaling on a real cluster: by work, to zero and back, by an HPA and KEDA
	@scripts/system-packages
	WEIR_E2E_SCALING=1 $(BIN)/pytest e2e/test_autoscaling.py e2e/test_keda.py \
	  e2e/test_scaling_by_work.py e2e/test_scaling_to_zero.py

.PHONY: e2e-versions
e2e-versions: install ## The quick scenarios on the oldest Kubernetes that Weir claims, and the newest
	@scripts/system-packages
	@scripts/e2e-versions

.PHONY: e2e-groups
e2e-groups: install ## Replicas over several nodes on a real cluster, by LeaderWorkerSet
	@scripts/system-packages
	WEIR_E2E_GROUPS=1 $(BIN)/pytest e2e/test_groups.py

.PHONY: integration-gpu-lock
integration-gpu-lock: install ## The engine's tests on the Python code of the vLLM that requirements/gpu.lock pins
	@scripts/integration-gpu-lock

.PHONY: test
test: check integration e2e ## Everything

.PHONY: generate
generate: install ## Write crds/, the chart's copies, its dashboards and the reference pages
	@$(BIN)/python scripts/generate

.PHONY: docs
docs: install ## Build the site of docs/ into .weir/site, with its links checked (npm fetches Mermaid once)
	@scripts/site build

.PHONY: docs-serve
docs-serve: install ## Serve the site while you write, at http://127.0.0.1:8008
	@scripts/site serve --dev-addr 127.0.0.1:8008

.PHONY: docs-publish
docs-publish: install ## Commit the site of this version to the branch gh-pages, beside those of others
	@scripts/site publish

.PHONY: console
console: ## Copy the npm packages of the console's page anew, as its lock pins them (needs npm)
	@scripts/console-vendor

.PHONY: console-picture
console-picture: install ## Write docs/console.png, which the console's test takes
	WEIR_CONSOLE_PICTURE=docs/console.png $(BIN)/pytest tests/integration/sidecar/test_console.py

.PHONY: format
format: install ## Format the sources
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)

.PHONY: lock
lock: install ## Resolve requirements/*.lock anew
	@scripts/lock

.PHONY: images
images: ## Build the container images with docker or podman, with digests and lists of packages
	@scripts/images

.PHONY: bench-relay
bench-relay: install ## Cost of the sidecar's relay beside other routers (ARGS="--quick" ...)
	@compiled="$$(scripts/compiled)"; PYTHONPATH="$$compiled" $(BIN)/python -m bench.relay $(ARGS)

.PHONY: bench-decisions
bench-decisions: install ## Cost of a scheduling decision, compiled as in the image and as written
	@compiled="$$(scripts/compiled)"; PYTHONPATH="$$compiled" $(BIN)/python -m weir_sim.decision_cost
	$(BIN)/python -m weir_sim.decision_cost

.PHONY: bench-prefixes
bench-prefixes: install ## Cost of following prefixes, compiled as in the image and as written
	@compiled="$$(scripts/compiled)"; PYTHONPATH="$$compiled" $(BIN)/python -m weir_sim.prefix_cost
	$(BIN)/python -m weir_sim.prefix_cost

.PHONY: bench-overload
bench-overload: install ## Twice what a real engine can do, for three minutes, with and without Weir
	$(BIN)/python -m bench.overload $(ARGS)

.PHONY: bench-peers
bench-peers: install ## Overload before a modelled engine: Weir beside other gateways
	$(BIN)/python -m bench.peers $(ARGS)

.PHONY: bench-fleet
bench-fleet: install ## Four engines behind Weir's sidecars and behind other routers (ARGS=...)
	$(BIN)/python -m bench.fleet routers $(ARGS)

.PHONY: bench-serve
bench-serve: install ## vLLM's own benchmark, 500 chats, against what `make up` serves
	@scripts/bench-serve

.PHONY: clean
clean: down ## Remove everything Weir put on this machine, caches included
	@if [ -d "$(WEIR_CACHE)/clusters" ]; then $(BIN)/python -m e2e.cluster down; fi
	rm -rf $(VENV) .weir .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	chmod -R u+w "$(WEIR_CACHE)" 2>/dev/null || true
	rm -rf "$(WEIR_CACHE)"
