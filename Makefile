# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Versions that were tested together; they are those of Python 3.11 and newer, so an older one takes what it gets.
TESTED := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')

.PHONY: demo test test-slow test-newest lint format docs bench clean

demo: $(READY)  ## design molecules with 400 calls of a reward, beside screening; a table and a report under out/demo
	rm -rf out/demo
	OMP_NUM_THREADS=1 $(BIN)/guidekit design molecules --reward objective:perindopril_mpo --require 'alerts.left_step(0)' \
		--require 'sa.left_step(4)' --diversity 10 --budget 400 --compare --out out/demo

test: $(READY)  ## the whole test suite, without the long statistical runs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: $(READY)  ## the long statistical runs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal -m slow

test-newest:  ## the test suite with the newest releases of everything, in an environment of its own
	$(MAKE) test VENV=.venv-newest TESTED=

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the pages as a site under out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## the engine's overhead and memory
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) .venv-newest out .pytest_cache .ruff_cache

# One environment, with torch and the torchvision that open_clip needs resolved together by pip.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; try make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TESTED) -e '.[test]'
	touch $(READY)
