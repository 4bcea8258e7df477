PYTHON ?= python3
# TESTS=all runs the slow tests too.
TESTS ?= quick

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
# Two pips must not write into one environment, whatever -j says.
.NOTPARALLEL:
.PHONY: help demo test test-all lint bench docs dist lowest clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed ## walk the level set of a real network; figures in runs/
	mkdir -p runs
	$(BIN)/geoflow run iris_ff --out runs/iris_ff.nc --figures runs/ --force
	@echo
	@echo "The trajectory is runs/iris_ff.nc, its figures are beside it in runs/."
	@echo "Next: $(BIN)/geoflow info runs/iris_ff.nc"

# One thread a process: the tests run in as many processes as there are processors.
test: $(VENV)/.installed-dev ## run the tests (TESTS=all: the slow ones too)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal $(if $(filter all,$(TESTS)),,-m "not slow")

test-all: ## run the tests, the slow ones too
	$(MAKE) test TESTS=all

lint: $(VENV)/.installed-dev ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed ## measure every solver; writes the table of docs/performance.md
	$(BIN)/python studies/bench.py

docs: $(VENV)/.installed-docs ## build the documentation in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "The documentation is docs/_build/html/index.html."

dist: $(VENV)/.installed-dev ## build sdist and wheel, and walk with them in an environment of their own
	rm -rf dist build/alone
	SOURCE_DATE_EPOCH=1700000000 $(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd build && alone/bin/geoflow run iris_ff --out alone/iris.nc && alone/bin/geoflow validate alone/iris.nc

# All but torch, of which there is no older build for every machine.
lowest: ## walk, resume and draw with the lowest versions allowed, but torch's
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest
	sed -nE '/^dependencies/,/^]/ s/^  "([^[>]+)(\[.*\])?>=(.*)",/\1==\3/p' pyproject.toml | grep -v '^torch==' > build/lowest/versions
	grep '^torch==' constraints.txt >> build/lowest/versions
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint build/lowest/versions .
	cd build/lowest && bin/geoflow run iris_ff --angle 120 --out iris.nc && bin/geoflow resume iris.nc --angle 175
	cd build/lowest && bin/geoflow validate iris.nc && bin/geoflow plot iris.nc --out . && bin/geoflow spectrum iris.nc --snapshots=0,-1

clean: ## remove what make has made, runs/ excepted
	rm -rf $(VENV) build dist docs/_build docs/gallery docs/sg_execution_times.rst .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps are older than these files where an install is due.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@
