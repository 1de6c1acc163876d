# Two commands: `make demo` and `make test`. `make help` lists the others.
STACK ?= mmlab
PYTHON ?= python3
PYTEST_ARGS ?=
# Tests of one file stay in one process: they share what is costly to set up. A process that dies
# is not replaced: the next one would begin with the test that it died of.
TEST_PROCESSES ?= auto
DEMO_ARGS ?=

ifeq ($(STACK),onedl)
VENV := .venv-onedl
else
VENV := .venv
endif
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-docs demo test lint format docs clean clean-all

help:
	@echo "make demo       train, test and refine on Shapes, write pictures and a table (DEMO_ARGS=...)"
	@echo "make test       linter and fast tests (PYTEST_ARGS=..., such as PYTEST_ARGS='-m slow')"
	@echo "make setup      only the environment: $(VENV), pinned packages, mmcv, mmplus"
	@echo "make lint       ruff check and ruff format --check;  make format mends"
	@echo "make docs       HTML documentation in docs/_build/html"
	@echo "make clean      remove what builds left;  make clean-all: the environments too"
	@echo "Variables: STACK=mmlab (default) or onedl, PYTHON=python3, MAX_JOBS, FORCE_CUDA=0/1,"
	@echo "           TORCH_CUDA_ARCH_LIST, MMPLUS_WITH_OPS=0, TEST_PROCESSES (of pytest; 0: one after another)"

setup:
	@$(PYTHON) dev/bootstrap.py --stack $(STACK)

# The tests build the documentation, so they need its tools too.
setup-docs:
	@$(PYTHON) dev/bootstrap.py --stack $(STACK) --docs

demo: setup
	@$(BIN)/python tools/demo.py $(DEMO_ARGS)

test: setup-docs lint
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 4 --max-worker-restart 0 --dist loadfile $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup-docs
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf build dist *.egg-info docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

clean-all: clean
	rm -rf .venv .venv-onedl .venv.lock .venv-onedl.lock .venv-shared ops/mmplus_ops/_C*
