# make demo and make test do everything on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := sam,sd,onnx,video,wandb,tensorboard
CONSTRAINTS ?= constraints.txt # make test CONSTRAINTS= installs the newest of everything
PINS := $(if $(strip $(CONSTRAINTS)),--constraint $(strip $(CONSTRAINTS)))
# Where it is set, each program that a test starts would compile torch and Lightning again, which takes 15 seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test unit coverage lowest rounding slow browser docs lint types format clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "semcorr needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $(PINS) --editable '.[$(EXTRAS),dev]'
	touch $@

demo: .venv/installed ## frozen against fine-tuned on synthetic creatures, about 5 minutes
	$(BIN)/python scripts/demo.py

test: .venv/installed ## unit and integration tests, 10 to 13 minutes on 2 cores
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal

unit: .venv/installed ## unit tests, 2 minutes
	$(BIN)/python -m pytest -q -m "not slow and not integration" -n 2 --dist worksteal

coverage: .venv/installed ## the same with the share of lines that run; at least 90 %
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal --cov --cov-report=term:skip-covered

rounding: .venv/installed ## the same where a product's rounding depends on its shape, as on some processors
	PYTHONPATH=tests/helpers $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal -p shape_rounding

slow: .venv/installed ## the proofs that take minutes
	$(BIN)/python -m pytest -q -m slow

browser: .venv-app/installed ## python -m semcorr.app, driven in Chromium
	.venv-app/bin/python -m pytest -q -m "slow or not slow" tests/app/test_app.py tests/app/test_app_browser.py tests/security/test_page_*.py

.venv-app/installed: pyproject.toml constraints.txt # gradio wants an older Pillow than everything else
	$(PYTHON) -m venv .venv-app
	grep -v '^pillow==' constraints.txt > .venv-app/constraints.txt
	.venv-app/bin/python -m pip install --quiet --no-compile --constraint .venv-app/constraints.txt --editable '.[wandb,tensorboard,sam,dev,app,browser]'
	touch $@

lowest: ## the tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	all = p["dependencies"] + sum((p["optional-dependencies"][e] for e in "$(EXTRAS)".split(",")), []); \
	print(*(re.split("[<,]", d)[0].replace(">=", "==") for d in all), sep="\n")' > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --no-compile --constraint .venv-lowest/constraints.txt --editable '.[$(EXTRAS),dev]'
	.venv-lowest/bin/python -m pytest -q -m "not slow" -n 2 --dist worksteal

docs: .venv/docs ## these pages and the API as a site, into site/
	$(BIN)/mkdocs build --strict

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	touch $@

lint: .venv/installed ## ruff, codespell, which room imports which, and names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/measure_structure.py

types: .venv/installed ## mypy, strict
	$(BIN)/mypy

format: .venv/installed ## ruff's formatting and fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## forget the environments and the site
	rm -rf .venv .venv-app .venv-lowest site
