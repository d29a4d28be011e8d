# Each target but test-gpu sets up $(VENV) first, once: again only after pyproject.toml, setup.py or csrc/ change.
#
#   PYTHON=python3.12    the interpreter that makes the environment (3.10 or newer)
#   VENV=.venv           where it goes; an existing environment is used as it is, its torch included
#   TORCH=torch==2.13.0  what is installed when there is no torch yet. From PyPI on Linux x86-64 that is a CUDA
#                        build of several GB; add the --index-url of PyTorch's CPU wheels for a small one
#   QUICK=1              shortens quickstart: every stage, few steps
#   JOBS=2               processes that run tests side by side, a file each; most tests keep one core busy

PYTHON ?= python3
export JOBS ?= 2
VENV ?= .venv
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
READY := $(VENV)/.megatron_ultralong
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help quickstart ablation test test-newest rehearse test-s3 test-slurm test-gpu test-gpus sanitize checks format clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY)  ## the whole way on this machine: prepare, extend, tune, convert, evaluate, report
	bash examples/tiny_cpu/run.sh

ablation: $(READY)  ## one arm of examples/ablations in short form: shows that it runs, not what it finds
	rm -rf build/ablation
	python examples/ablations/run.py run --quick --arm recipe --work build/ablation

test: $(READY)  ## the whole test suite, but for what is slow or needs SLURM
	python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not slurm"

test-newest: $(READY)  ## engine, layouts, checkpoints and conversion under the newest megatron-core (tests/newest.sh)
	tests/newest.sh

test-s3: $(READY)  ## inputs from S3 as moto's server speaks it (tests/object_store.sh)
	tests/object_store.sh

rehearse: $(READY)  ## a step of every example for the cluster that it declares, on this machine
	python -m pytest -n $(JOBS) --dist worksteal tests/examples/test_rehearsals.py

test-slurm: $(READY)  ## the cluster's scripts on a real SLURM of two nodes (tests/slurm/cluster.sh install)
	REQUIRE_SLURM=1 python -m pytest -m slurm tests/slurm $(PYTEST)

test-gpu:  ## every test marked gpu on one GPU, with the Python at hand (tools/gpu_check.py names what it needs)
	$(PYTHON) tools/gpu_check.py --part tests

test-gpus: $(READY)  ## layouts over NCCL against one process, and a killed rank, on as many as 8 of this machine's GPUs
	python -m pytest -m gpus tests/training/test_gpus.py

sanitize: $(READY)  ## the C++ extension's tests and fuzzer under AddressSanitizer and UBSan
	python tests/fuzz/sanitize.py

checks: $(READY)  ## lint, formatting and types
	ruff check .
	ruff format --check .
	mypy

format: $(READY)  ## mend what ruff can
	ruff check --fix-only .
	ruff format .

clean:  ## remove what was built and cached, but neither $(VENV) nor the quickstart's results
	rm -rf build/temp* build/megatron-core-* build/object-store build/lib* build/bdist* dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(READY): pyproject.toml $(wildcard setup.py csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@
