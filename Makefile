# make help names the targets. Each makes what it needs first, from nothing: .venv, the pinned
# dependencies, the extension. Nothing outside this folder is changed.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Triton goes with torch from 2.14 on, which asks for one; before, it is the one that torch 2.11 has:
# how many registers a kernel takes depends on it.
TRITON ?= $(if $(findstring ==2.14,$(TORCH)),triton==3.8.0,triton==3.6.0)
# Test processes; most tests keep one core busy.
WORKERS ?= -n 2 --dist worksteal

# The ops on simulated CUDA kernels; setup.py makes it.
SIMULATOR := build/native/simulator/ops.so

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what it imports; compiling all of torch would take half of the installation.
INSTALL := $(PIP) install --no-compile
# Where it may not keep what it compiled, each of the suite's many processes compiles torch again.
unexport PYTHONDONTWRITEBYTECODE

# Named after TORCH: another TORCH is another stamp, and replaces the torch that is installed.
TORCH_STAMP := $(STAMPS)/torch-$(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.+_-' _)
CPP = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: docs help demo test test-all lint bench gpu build simulator check-archs wheel clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8
	@echo "PYTHON=$(PYTHON) makes $(VENV), TORCH=$(TORCH) is installed there; both can be set."

demo: build  ## layers beside torch.nn, and a model trained on real words: some minutes, the first time with the build
	$(BIN)/python -m bptt.tools.demo

test: lint build simulator  ## lint, then the suite; GPU kernels without a GPU run beside it
	$(BIN)/python -m pytest -q $(WORKERS) $(CASES)
	TRITON_INTERPRET=1 BPTT_SIMULATOR=$(SIMULATOR) \
		$(BIN)/python -m pytest -q $(WORKERS) $(CASES) tests/kernels tests/simulated

test-all: export BPTT_EVERY_SET = 1
test-all: CASES = --all  ## every case of every test, kernels under sanitizers too: three quarters of an hour
test-all: test

lint: $(STAMPS)/packages  ## ruff, mypy on the package, clang-format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

bench: build  ## speed against torch.nn, some minutes; writes benchmarks/results
	$(BIN)/bptt bench standard

# Another machine's Python, with its torch: .ci/gpu says what it takes and makes.
gpu:  ## on a machine with a GPU: its tests, compute-sanitizer, speed beside torch.nn
	.ci/gpu

# The editable install points Python at this folder; setup.py has its own up-to-date check.
build: $(STAMPS)/editable  ## the extension, in place
	@$(BIN)/python setup.py --quiet build_ext --inplace

simulator: $(STAMPS)/editable  ## CUDA kernels for a CPU: what tests/simulated runs
	@$(BIN)/python setup.py --quiet build_simulator

check-archs: build  ## CUDA kernels for every architecture: registers, spills
	@$(BIN)/python setup.py --quiet build_kernels
	$(BIN)/python benchmarks/resources.py

docs: build $(STAMPS)/docs  ## the documentation site, in build/site
	$(BIN)/python -m mkdocs build --strict --quiet

wheel: $(STAMPS)/packages  ## a wheel in dist/, for every torch from 2.11 and Python from 3.10
	rm -rf build/lib* build/bdist*
	$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info python/bptt/*.so

# A stamp is written when its step is through: a step that was interrupted is run again.
$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is older than 3.11")'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

$(TORCH_STAMP): $(STAMPS)/venv
	rm -f $(STAMPS)/torch-*
	$(INSTALL) --constraint requirements/dev.txt '$(TORCH)'
	$(BIN)/python -W ignore -c 'import torch; print("torch", torch.__version__)'
	touch $@

# The constraint keeps pip from replacing the torch just installed, whatever a package asks for.
$(STAMPS)/packages: $(TORCH_STAMP) requirements/dev.txt
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
		> $(STAMPS)/constraints.txt
	$(INSTALL) --quiet --constraint $(STAMPS)/constraints.txt --requirement requirements/dev.txt '$(TRITON)'
	touch $@

$(STAMPS)/docs: $(STAMPS)/packages pyproject.toml
	$(INSTALL) --quiet --constraint $(STAMPS)/constraints.txt 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.27'
	touch $@

$(STAMPS)/editable: $(STAMPS)/packages setup.py pyproject.toml
	$(BIN)/python setup.py --quiet build_ext --inplace  # by itself, to show its progress
	$(INSTALL) --quiet --no-build-isolation --no-deps --editable .
	touch $@
