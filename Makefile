# The commands of this repository; CI runs the same ones. `make help` lists them.
# Python 3.11 or 3.12 is taken where it is found; another one: make run PYTHON=/path/to/python3.12
UV = 0.13.9
SUITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(SUITS)' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2

# A stage is started as `python -m stages.X`: the first python on PATH must be the one that has everything.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY ?= true
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
# Bytecode is written by who needs it first: where Python may not, every command would compile torch and mlflow anew.
export PYTHONDONTWRITEBYTECODE :=
# uv trusts what the system trusts (a company's certificate), and the index that pip was told of in the environment.
export UV_SYSTEM_CERTS ?= true
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
READY = .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test format check deps lock ui

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile

install: $(READY) ## make .venv with everything in it

run: $(READY) ## install what is needed, then bring every output up to date with `dvc repro`
	.venv/bin/dvc repro

test: $(READY) ## install what is needed, then run linter, formatter, type check and tests
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

format: $(READY) ## let ruff put the sources in order
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

check: $(READY) ## say whether dvc.lock fits code and settings; runs no stage and needs no data
	@.venv/bin/dvc repro --dry --allow-missing > .venv/dry.log || { cat .venv/dry.log; \
	  echo 'DVC could not compare: where it misses data, outputs here are of another dvc.lock: `dvc pull --force`, then again' >&2; \
	  exit 1; }
	@! grep 'Running stage' .venv/dry.log || { echo 'dvc.lock does not fit: `make run`, then commit it' >&2; exit 1; }
	@echo 'dvc.lock fits code and settings'

deps: $(READY) ## write into dvc.yaml which files each stage imports
	.venv/bin/python tests/closure.py

ui: $(READY) ## open the record of all runs on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=$${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false} .venv/bin/mlflow ui --workers 1

lock: .venv/bin/uv ## remake requirements.lock from pyproject.toml, keeping versions that still fit
	.venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --no-annotate \
	  pyproject.toml -o requirements.lock

# Written last, so that an installation that was cut short is taken up again. A new lock or pyproject.toml reinstalls.
# uv is many times faster than pip; pip, slow and sure, steps in where only pip.conf says how to reach the packages.
$(READY): requirements.lock pyproject.toml .venv/bin/uv
	@.venv/bin/python -c '$(SUITS)' || { echo '.venv is not of Python 3.11 or 3.12: delete it' >&2; exit 1; }
	.venv/bin/uv pip sync --python .venv/bin/python requirements.lock || \
	  .venv/bin/python -m pip install --no-deps --require-hashes --requirement requirements.lock
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv/bin/uv:
	@test -n '$(PYTHON)' && '$(PYTHON)' -c '$(SUITS)' 2>/dev/null || { \
	  echo 'PYTHON = "$(PYTHON)" is not Python 3.11 or 3.12: install one, or name it: make run PYTHON=/path/to/python3.12' >&2; \
	  exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)' >&2; \
	  exit 1; }
	'$(PYTHON)' -m venv .venv
	.venv/bin/python -m pip install --quiet uv==$(UV)
