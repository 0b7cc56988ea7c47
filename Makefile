# make demo | test | lint | slow | clean; the first run builds .venv (PYTHON=python3.11 names another interpreter).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TREE := build/mypy/vlm_contextrl

.PHONY: demo test slow lint types clean

demo: $(INSTALLED)
	$(BIN)/vlm-contextrl demo --out runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# mypy knows nothing of setuptools' package-dir, so the rooms are linked to where they are installed.
types: $(INSTALLED)
	rm -rf $(TREE)
	mkdir -p $(TREE)
	cd $(TREE) && ln -s ../../../vlm_contextrl/* ../../../data_recipes ../../../configs ../../../eval ../../../app .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints-cpu.txt no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints-cpu.txt -e ".[dev]"
	$(BIN)/python -m pip install --no-deps -r no-deps.txt
	touch $@
