# Everything a person does with this project. A target sets up what it needs by itself: a machine needs only
# make, Python 3.11 or newer, and pip or uv. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

ARCH ?= arm64
UV_VERSION := 0.13.9

# Neither make nor the shell takes a path's spaces and quotes as part of the path.
ODD_CHARACTERS := $(shell pwd | LC_ALL=C tr -d 'A-Za-z0-9/._+@,=~\200-\377\n-')
ifneq ($(ODD_CHARACTERS),)
$(error the path of this folder contains "$(ODD_CHARACTERS)": move it to one whose path has letters, digits, ".", "_" and "-" only)
endif

# The first Python that is new enough and really runs: a pyenv shim may exist and not run.
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' 2>/dev/null && break; done)
ifeq ($(PYTHON),)
ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),help)),)
$(error ringonce needs Python 3.11 or newer on PATH, and there is none: `uv python install 3.13` installs one)
endif
endif
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo $(CURDIR)/.tools/uv/bin/uv)

# An environment's stamp carries the content it was made from, so a second run costs nothing and a changed
# requirements file or a vanished interpreter makes the environment anew.
stamp = .venv$(1)/.ringonce-$(shell (echo "$(PYTHON)"; cat $(2)) | cksum | tr ' ' '-')
DEV_PACKAGES := $(call stamp,,requirements-dev.txt)
AWS := $(call stamp,-aws,requirements-aws.txt)
SAM := $(call stamp,-sam,requirements-sam.txt)
AGENT := $(call stamp,-agent,examples/agent/requirements-test.txt)
CHECKS := $(call stamp,-checks,requirements-checks.txt)
GENERATORS := $(call stamp,-generators,requirements-generators.txt)
RUNTIME := $(call stamp,-runtime,requirements-runtime.txt)
# .venv with this checkout installed into it, which a changed pyproject.toml does anew without the packages.
DEV := .venv/.checkout-$(shell cksum < pyproject.toml | tr ' ' '-')

# The functions' third-party packages for the local stack, with a copy of the file they came from.
PACKAGES := .local/packages/.ringonce-$(shell (echo "$(AWS)"; cat functions/requirements.txt) | cksum | tr ' ' '-')

# Validating and building never leave the machine: no profile, no instance metadata, any region, and a folder
# for the SAM CLI whose date of the last look for a newer version lies in the future.
SAM_CLI_FOLDER := .venv-sam/sam-cli
SAM_ENV := SAM_CLI_TELEMETRY=0 __SAM_CLI_APP_DIR=$(SAM_CLI_FOLDER) AWS_DEFAULT_REGION=us-east-1 \
	AWS_EC2_METADATA_DISABLED=true PATH="$(CURDIR)/.venv-sam/bin:$(dir $(UV)):$$PATH"

export UV
# A company's proxy signs with an authority that the system's store has and uv's own list does not have.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem),)
UV_SYSTEM_CERTS ?= 1
export UV_SYSTEM_CERTS
endif
# Many processes import the same files: the first one compiles them for all, wherever a machine is set not to.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo run stop test coverage picture browser check build sam-local lock bench clean

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV) $(AWS) $(SAM) $(AGENT) $(GENERATORS) $(PACKAGES) ## Makes the environments .venv (with the operator's .venv/bin/admin), .venv-aws, .venv-sam, .venv-agent and .venv-generators

demo: $(DEV) $(AWS) $(PACKAGES) ## Places three calls on the local stack and shows what happens, then stops
	@.venv/bin/python -m local.demo

run: $(DEV) $(AWS) $(PACKAGES) ## Leaves the local stack running until Ctrl-C or `make stop`; PORT=8080 fixes the API's port
	@.venv/bin/python -m local.stack

stop: ## Stops the local stack that `make run` started
	@$(PYTHON) -m local.stack stop

# Most of a module's tests stay in one process, until another has nothing left to do. Those of the handlers wait more
# than they work, each process with a system of its own.
WORKING := -n auto --maxprocesses 4 --dist worksteal
WAITING := -n 4 --dist worksteal
ARTIFACT_TEST := tests/e2e/test_artifact.py
test: $(DEV) $(AWS) $(SAM) $(AGENT) $(GENERATORS) $(RUNTIME) $(PACKAGES) browser ## Runs every test: unit and model, integration and infra, schedules, the agent's, then the whole stack
	.venv/bin/python -m pytest $(WORKING) tests/unit tests/model
	.venv/bin/python -m pytest $(WAITING) tests/infra tests/integration
	.venv/bin/python -m pytest $(WORKING) tests/fault_schedules
	cd examples/agent && $(CURDIR)/.venv-agent/bin/python -m pytest
	if [ -x .venv-runtime/bin/python ]; then .venv/bin/python -m pytest -m e2e; else \
		.venv/bin/python -m pytest -m e2e --ignore $(ARTIFACT_TEST); \
		echo "NOT RUN: $(ARTIFACT_TEST), the built artifact under Lambda's own runtime: no Python 3.13 here" >&2; fi

# Read by people; no figure of it passes or fails a change.
coverage: $(DEV) ## Runs the unit and integration tests; prints which lines and branches of functions/ none of them takes
	.venv/bin/coverage erase
	.venv/bin/coverage run -m pytest $(WAITING) tests/unit tests/integration
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

picture: $(DEV) $(AWS) $(PACKAGES) browser ## Takes docs/console.png, the README's picture of the console, anew
	.venv/bin/python -m pytest -m e2e tests/e2e/test_console.py
	cp .local/screenshots/answered-light-1280.png docs/console.png

check: $(DEV) $(SAM) $(AGENT) $(CHECKS) ## Lints, formats (without writing), type-checks, validates the templates, looks for weak spots
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	cd examples/agent && $(CURDIR)/.venv-agent/bin/mypy
	$(SAM_ENV) sam validate --lint
	mkdir -p .aws-sam
	$(SAM_ENV) .venv/bin/python -m infra.translated > .aws-sam/translated.json
	$(SAM_ENV) cfn-lint template.yaml .aws-sam/translated.json infra/monitoring.yaml infra/deploy-role.yaml
	.venv-checks/bin/bandit --quiet --recursive --configfile pyproject.toml functions admin
	.venv-checks/bin/checkov --config-file infra/checkov.yaml

BUILD_DIR := .aws-sam/$(if $(filter arm64,$(ARCH)),build,build-$(ARCH))
build: $(SAM) ## Builds what `sam deploy` uploads; ARCH=x86_64 builds one that runs on such a machine, beside it
	mkdir -p .aws-sam/infra
	cp infra/monitoring.yaml .aws-sam/infra/
	sed 's/^    Architectures: .*/    Architectures: [$(ARCH)]/' template.yaml > .aws-sam/template-$(ARCH).yaml
	$(SAM_ENV) UV_REQUIRE_HASHES=1 UV_NO_BUILD=1 sam build --config-file "$(CURDIR)/samconfig.toml" \
		--template-file .aws-sam/template-$(ARCH).yaml --base-dir . --build-dir $(BUILD_DIR)
	$(PYTHON) infra/finish_build.py $(BUILD_DIR)

# The functions are built for this machine's processor: AWS's own is arm64, and a container of it answers 502 elsewhere.
sam-local: ## Serves the API in Lambda's containers, with Docker, against the stack that `make run` holds up
	@test -e .local/sam-template.yaml || { echo "start the local stack first: make run" >&2; exit 1; }
	$(MAKE) --no-print-directory build ARCH=$(shell uname -m | sed s/aarch64/arm64/)
	$(SAM_ENV) sam local start-api

simulate: $(DEV) ## Runs a campaign of 10,000 calls over three days in virtual time, with faults; SEED=2 draws another
	@.venv/bin/python -m simulate $(if $(SEED),--seed "$(SEED)")

bench: $(DEV) $(AWS) $(PACKAGES) ## Measures what docs/performance.md tells, beside the floors; after `make build`
	@.venv/bin/python -m bench

# The functions' versions are those that the tests ran with: they are cut out of the dev resolution.
LOCK := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
lock: | $(UV) ## Compiles the requirements files from pyproject.toml; UPGRADE=1 takes the newest versions
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) pyproject.toml --group dev -o requirements-dev.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) pyproject.toml -c requirements-dev.txt -o functions/requirements.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group browser -c requirements-dev.txt -o requirements-browser.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group aws -o requirements-aws.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group sam -o requirements-sam.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group examples/agent/pyproject.toml:test examples/agent/pyproject.toml \
		-o examples/agent/requirements-test.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) examples/agent/pyproject.toml -c examples/agent/requirements-test.txt \
		-o examples/agent/requirements.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group checks -o requirements-checks.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group generators -o requirements-generators.txt
	$(UV) $(LOCK) $(if $(UPGRADE),--upgrade) --group runtime -o requirements-runtime.txt

clean: ## Removes everything that the other targets made
	rm -rf .venv .venv-aws .venv-sam .venv-agent .venv-checks .venv-generators .venv-runtime .tools .local .aws-sam .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── the environments ──
# What a step is about to fetch, and about how many MB it takes on disk: on a slow network it is silent for minutes.
fetching = @echo "fetching $(1): about $(2) MB on disk" >&2

.tools/uv/bin/uv $(CURDIR)/.tools/uv/bin/uv:
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "ringonce needs pip for $(PYTHON), or uv on PATH:" \
		"on Debian \`apt install python3-pip\`, or https://docs.astral.sh/uv/getting-started/installation" >&2; exit 1; }
	$(call fetching,uv into .tools,40)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools/uv uv==$(UV_VERSION)

# $(1): the folder, $(2): its requirements file, $(3): what it is for, $(4): its size in MB.
define environment
	$(call fetching,$(3) into $(1),$(4))
	@rm -rf $(1)
	@$(UV) venv --quiet --python "$(PYTHON)" $(1)
	@$(UV) pip sync --quiet --python $(1) --require-hashes --compile-bytecode $(2)
endef

$(DEV_PACKAGES): | $(UV)
	$(call environment,.venv,requirements-dev.txt,the local stack and the tests,330)
	@touch $@

$(DEV): $(DEV_PACKAGES) | $(UV)
	@$(UV) pip install --quiet --python .venv --no-deps --editable .
	@touch $@

# Chromium and what drives it, for the console's tests alone. Where they cannot be installed those tests are skipped
# and say so (with RINGONCE_BROWSER=required they fail).
BROWSER := .venv/.browser-$(shell (echo "$(DEV_PACKAGES)"; cat requirements-browser.txt) | cksum | tr ' ' '-')
browser: $(DEV)
	@test -e $(BROWSER) || { echo "fetching the browser's driver into .venv: about 160 MB on disk" >&2 \
		&& $(UV) pip install --quiet --python .venv --require-hashes -r requirements-browser.txt \
		&& touch $(BROWSER); } || echo "the browser's driver cannot be installed here: the console's tests are skipped"
	@command -v chromium chromium-browser google-chrome >/dev/null || { test "$$(id -u)" = 0 \
		&& echo "fetching chromium for the system: about 360 MB on disk" >&2 \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		chromium fonts-dejavu-core >/dev/null; } || echo "no chromium here: the console's tests are skipped"

$(AWS): | $(UV)
	$(call environment,.venv-aws,requirements-aws.txt,the emulated AWS,70)
	@touch $@

$(PACKAGES): | $(AWS)
	$(call fetching,the functions' packages into .local/packages,25)
	@rm -rf .local/packages
	@$(UV) pip install --quiet --python .venv-aws --target .local/packages --require-hashes --compile-bytecode \
		-r functions/requirements.txt
	@cp functions/requirements.txt .local/packages/installed-requirements.txt
	@touch $@

$(AGENT): | $(UV)
	$(call environment,.venv-agent,examples/agent/requirements-test.txt,the example agent,360)
	@touch $@

$(SAM): | $(UV)
	$(call environment,.venv-sam,requirements-sam.txt,the SAM CLI,280)
	@mkdir -p $(SAM_CLI_FOLDER)
	@echo '{"lastVersionCheck": 4102444800, "telemetryEnabled": false}' > $(SAM_CLI_FOLDER)/metadata.json
	@touch $@

$(CHECKS): | $(UV)
	$(call environment,.venv-checks,requirements-checks.txt,the checks of the code,280)
	@touch $@

$(GENERATORS): | $(UV)
	$(call environment,.venv-generators,requirements-generators.txt,the generators of API clients,100)
	@touch $@

# The one environment of the functions' own Python; without one it stays empty, and `make test` says what was not run.
$(RUNTIME): | $(UV)
	@rm -rf .venv-runtime
	@mkdir .venv-runtime
	@python=$$($(PYTHON) infra/finish_build.py --python); if [ -n "$$python" ]; then \
		echo "fetching Lambda's runtime into .venv-runtime: about 2 MB on disk" >&2 && \
		$(UV) venv --quiet --clear --python "$$python" .venv-runtime && \
		$(UV) pip sync --quiet --python .venv-runtime --require-hashes requirements-runtime.txt; fi
	@touch $@
