# make test   set up, lint, type-check, run the suite and the plugins' own tests, build and install all wheels
# make demo   set up and run the main job: list, plan, train, evaluate, ask (offline, CPU, minutes)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# All but the collection of broken blocks, which tests install where it can do no harm.
PLUGINS := $(filter-out plugins/fusionkit-hostile/%,$(wildcard plugins/*/pyproject.toml))
PLUGIN_FOLDERS := $(patsubst %/pyproject.toml,%,$(PLUGINS))
PYTEST ?= -n 2 --dist loadfile

# A local folder of wheels may hold a CPU-only torch that does not match torchvision: resolve both from one place.
export PIP_FIND_LINKS :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1

.PHONY: setup test lint types suite plugins slow wheel demo clean

setup: $(VENV)/.stamp

# Entry points are read from installed metadata, so every change of a pyproject.toml installs again.
$(VENV)/.stamp: pyproject.toml setup.py constraints.txt $(PLUGINS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]" $(addprefix --editable ./,$(PLUGIN_FOLDERS))
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

suite: setup
	$(BIN)/python -m pytest $(PYTEST) -m "not slow and not gpu"

plugins: setup
	$(BIN)/python -m pytest $(PYTEST) -m "not slow and not gpu" $(wildcard plugins/*/tests)

slow: setup
	$(BIN)/python -m pytest -m slow

wheel: setup
	$(BIN)/python tests/wheel_check.py $(PLUGIN_FOLDERS)

test: lint types wheel suite plugins

demo: setup
	$(BIN)/fusionkit demo -o demo

clean:
	rm -rf $(VENV) build dist demo *.egg-info
