# `make distill` runs the default recipe, `make test` the tests; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
READY := $(VENV)/.ready
RECIPE ?=
WORKERS ?= 2
TORCH ?= torch
APART := services slurm kubernetes chaos trainers
space := $(subst ,, )

.DEFAULT_GOAL := help
.PHONY: help setup clusters kubernetes distill plan clean-run test test-slow test-services test-slurm test-kubernetes test-chaos test-trainers lint \
  format lock

# Each start of Snakemake loads the plugins that are installed, 0.8 s for SLURM's: `make clusters` puts it there, `make
# kubernetes` the others.
SLURM := snakemake-executor-plugin-slurm
KUBERNETES := snakemake-executor-plugin-kubernetes snakemake-storage-plugin-s3 snakemake-storage-plugin-gcs

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## build .venv from requirements.lock (does nothing when it is current)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "distill needs Python 3.11 to 3.13, $(PYTHON) is `$(PYTHON) -V 2>&1`: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[^ ]+' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python $(SLURM) $(KUBERNETES)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

clusters: $(VENV)/.clusters  ## add what profiles/slurm runs by
kubernetes: $(VENV)/.kubernetes  ## add what profiles/kubernetes runs by

# All that is locked, but what only the other one runs by.
define add_plugins
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	test -e $(VENV)/$(1) || $(BIN)/uv pip uninstall --quiet --python $(BIN)/python $(2)
	@touch $@
endef

$(VENV)/.clusters: $(READY)
	$(call add_plugins,.kubernetes,$(KUBERNETES))

$(VENV)/.kubernetes: $(READY)
	$(call add_plugins,.clusters,$(SLURM))

clean-run: $(READY)  ## delete a run's folder: RUN=name, and RESULTS=folder where it is not results
	$(BIN)/python scripts/clean_run.py --results $(or $(RESULTS),results) --run "$(RUN)"

distill: $(READY)  ## run the default recipe (RECIPE=recipes/x.yaml: another one)
	$(BIN)/snakemake --cores $(CORES) $(if $(RECIPE),--configfile $(RECIPE))

plan: $(READY)  ## what a recipe comes to, before anything is downloaded (RECIPE=recipes/x.yaml)
	$(BIN)/snakemake --cores 1 plan $(if $(RECIPE),--configfile $(RECIPE)) $(ARGS)

test: $(READY)  ## run the tests that need nothing but Python
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile rules
	$(BIN)/pytest -m "not slow and not $(subst $(space), and not ,$(APART))" --numprocesses $(WORKERS) $(ARGS)

test-slow: $(READY)  ## run those of them that take long
	$(BIN)/pytest -m "slow and not $(subst $(space), and not ,$(APART))" --numprocesses $(WORKERS) $(ARGS)

test-services: $(READY)  ## run the tests that need Debian packages (installs them when root)
	bash tests/services/install
	$(BIN)/pytest -m services $(ARGS)

test-slurm: $(VENV)/.clusters  ## run the tests on a SLURM of one node, which this installs and starts, as root
	bash tests/services/install slurm
	$(BIN)/pytest -m slurm $(ARGS)

test-kubernetes: $(VENV)/.kubernetes  ## run the tests on a stand-in for a Kubernetes cluster, whose pods are processes
	$(BIN)/pytest -m kubernetes $(ARGS)

test-chaos: $(READY)  ## kill a run at thirty random moments and compare what comes out (a quarter of an hour)
	$(BIN)/pytest -m chaos $(ARGS)

TRAINERS := $(VENV)/trainers
test-trainers: $(TRAINERS)/.ready  ## run TRL's and axolotl's own data preparation on our dataset (installs them apart: torch)
	$(TRAINERS)/bin/python -m pytest tests/data -m trainers $(ARGS)

# axolotl pins what we have in other versions, and wants a GPU's packages: its preparation needs these alone.
$(TRAINERS)/.ready: $(READY)
	$(PYTHON) -m venv --clear $(TRAINERS)
	$(BIN)/uv pip sync --quiet --python $(TRAINERS)/bin/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(TRAINERS)/bin/python --no-deps --editable .
	$(TRAINERS)/bin/python -m pip install --quiet --disable-pip-version-check trl $(TORCH)
	$(TRAINERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps axolotl addict colorama
	@touch $@

format: $(READY)  ## bring the code into the house's form
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/snakefmt Snakefile rules

lock: $(READY)  ## pin the newest versions that pyproject.toml allows
	$(BIN)/uv export --upgrade --extra dev --no-emit-project --no-header --format requirements.txt --quiet -o requirements.lock
