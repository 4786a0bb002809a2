# `make` lists the targets. Options: PYTHON=python3.12 chooses the Python of
# the environment, ARGS='...' goes to the program that the target runs,
# EXAMPLES=1000 is how many random examples `make fuzz` draws for each of its
# properties; with SECONDS=600 it repeats them, with fewer examples each time,
# until that time is up. SECONDS is also how long `make soak` trains.
# JOBS=1 runs the tests in one process.
# COLUMN=torch2.1 takes other versions, those of requirements/columns/, in an
# environment of their own.

.PHONY: help env quickstart test test-all fuzz soak bench lint docs clean

export COLUMN
# mmdet3d refuses the other line of packages, but runs with it.
export SIGPLUG_MMDET3D_BESIDE_ONEDL := $(if $(filter onedl,$(COLUMN)),1)
JOBS ?= 2
VENV := .venv$(if $(COLUMN),-$(COLUMN))

ifeq ($(origin PYTHON),undefined)
# The environment's own first: one that was made with another Python stays.
PYTHON := $(or $(shell for p in $(if $(wildcard $(VENV)/setup-env.json), \
	$(VENV)/bin/python) python3.12 python3.11 python3.13 python3.10 python3; do \
	"$$p" -c '' 2>/dev/null && echo "$$p" && break; done),python3)
endif
# Packages of other installations (ROS, for one) must not mix with .venv.
unexport PYTHONPATH PYTHONHOME

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

env:  ## build or complete .venv: the pinned stack, mmcv compiled, sigplug
	@command -v $(PYTHON) >/dev/null || { echo 'env: no $(PYTHON): install' \
	'Python 3.12, or name one: make env PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) tools/misc/setup_env.py

quickstart: env  ## make data, train, evaluate and draw a small CenterPoint
	$(VENV)/bin/python tools/quickstart.py $(ARGS)

test: env  ## run the tests that are quick, in a few minutes
	$(VENV)/bin/python -m pytest $(or $(ARGS),-n $(JOBS) --dist loadfile)

# With old versions some tests are skipped, and what they cover.
test-all: env  ## run all tests, with the coverage of sigplug/
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -m 'not soak' \
	--cov --cov-report=term-missing \
	--cov-fail-under=$(if $(COLUMN),0,90) $(ARGS)

fuzz: export EXAMPLES ?= $(if $(SECONDS),100,1000)
fuzz: env  ## try random arguments, once or for SECONDS=... over and over
	@$(if $(SECONDS),export FUZZ_UNTIL=$$(($$(date +%s) + $(SECONDS)));) \
	while :; do $(VENV)/bin/python -m pytest --hypothesis-profile=fuzz \
	--hypothesis-show-statistics tests/*/test_properties.py $(ARGS) \
	|| exit; [ $$(date +%s) -lt $${FUZZ_UNTIL:-0} ] || break; done

soak: env  ## faults at random moments, then SECONDS=3600 on damaged data
	$(VENV)/bin/python -m pytest -m soak
	$(VENV)/bin/python tools/misc/soak.py --seconds $(or $(SECONDS),3600) \
	$(ARGS)

bench: env  ## time the operations and a training against the stock forms
	$(VENV)/bin/python tools/analysis_tools/benchmark.py $(ARGS)

lint: env  ## check style, types and docstrings
	$(VENV)/bin/python -m ruff check $(ARGS)
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python -m interrogate --quiet sigplug

docs: export DOCS := 1
docs: env  ## build the site of docs/ into docs/_build/; warnings are errors
	$(VENV)/bin/python -m sphinx -E -W --keep-going -q docs docs/_build $(ARGS)
	@echo 'docs: open docs/_build/index.html'

clean:  ## remove what builds and tests leave; keep .venv, data and results
	rm -rf build dist docs/_build .pytest_cache .ruff_cache .mypy_cache \
	.hypothesis .coverage*
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
