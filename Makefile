# make train | make test | make lint; JAX=cuda12 or JAX=cuda13 for NVIDIA GPUs.
JAX ?= cpu
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready-$(JAX)

.PHONY: help train test floor newest gpu-program gpu-test package lint docs format report clean
.DEFAULT_GOAL := help

help:
	@echo "make train   train on built-in data: small batch, large batch, large batch with LARS"
	@echo "make test    run the tests"
	@echo "make floor   run the package's tests on the oldest jax and optax it supports"
	@echo "make newest  run the package's tests, those with Flax, Haiku and Equinox, and a short"
	@echo "             training run on the newest jax (skipped without Python 3.12 or 3.13)"
	@echo "make gpu-test     test programs that are compiled for an NVIDIA H100; needs no GPU"
	@echo "make gpu-program  count kernels and memory of these programs; needs no GPU"
	@echo "make package  build the wheel, check it, and install it in bare environments"
	@echo "make lint    check format, style, types and who imports whom"
	@echo "make docs    build the documentation into site/"
	@echo "make report  put the benchmarks' results into the tables of the pages, and draw"
	@echo "             the picture of imports"
	@echo "make clean   remove the environment and what the runs wrote"

train: $(STAMP)
	@if nvidia-smi -L >/dev/null 2>&1 && \
	  ! $(PY) -c "import jax, sys; sys.exit(jax.default_backend() == 'cpu')"; then \
	  echo "nvidia-smi lists a GPU, but JAX sees only CPUs: make train JAX=cuda13 (or cuda12)"; fi
	$(PY) -m examples.imagenet.demo

test: $(STAMP)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

floor newest:
	tools/test_package.sh $@

gpu-program gpu-test:
	tools/compile_for_gpu.sh $(@:gpu-%=%)

package:
	tools/check_package.sh

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

format: $(STAMP)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

report: $(STAMP)
	$(PY) -m benchmarks.report
	PYTHONPATH=. $(PY) tools/draw_imports.py

# Written last, so that a half-made environment is built again.
$(STAMP): requirements.lock requirements-cuda.lock tools/make_venv.sh
	tools/make_venv.sh $(VENV) $(JAX)
	@touch $@

clean:
	rm -rf $(VENV) .venv-floor .venv-newest .venv-gpu .venv-package .venv-peers runs .pytest_cache .mypy_cache .ruff_cache site
