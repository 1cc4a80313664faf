# Every target sets up what it needs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two threads, and no spinning beside other busy processes: torch then runs at an even speed anywhere.
export OMP_NUM_THREADS ?= 2
# Tests run in a process per core, up to four, of one thread each. Each begins with a stretch of neighbouring files, and
# takes over tests of another's when it is done, so that all end together.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal
export GOMP_SPINCOUNT ?= 2000

.PHONY: help demo test quick test-ci lint test-long bench docs clean

help:
	@echo "make demo       debias a small biased classifier on generated images, from nothing"
	@echo "make test       lint, types, tests; a few minutes"
	@echo "make quick      those tests only"
	@echo "make test-ci    the tests marked ci: other libraries, whole runs again, processes; minutes"
	@echo "make lint       lint and types only"
	@echo "make test-long  lint, types and every test, of those marked slow, too"
	@echo "make docs       the documentation site, in docs/_build/html"
	@echo "make bench      print the tables of benchmarks/"

# Of 25,000 files a few thousand are ever imported: they are compiled then.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/bmft demo --out demo

# Types are one process: they are read beside the tests, which take longer.
test: $(READY)
	$(MAKE) -j 2 lint quick

quick: $(READY)
	$(TESTS) -m "not slow and not ci"

test-ci: $(READY)
	$(TESTS) -m "ci and not slow"

test-long: lint
	$(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

# A warning is an error; tests/test_site.py builds it the same way.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist demo docs/_build docs/gallery docs/project .mypy_cache .pytest_cache .ruff_cache
