# make train: everything from a bare Python >= 3.11 to a grid of restored digits; make test: the test suite;
# make demo: a page with small trained models, to try them; make check: style and types; make docs: the site, into site/;
# make constraints: the installed versions, for others; make kills: kill -9 at 20 random moments;
# make exhaustive: every number of every experiment with five values, and what takes minutes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train demo test kills exhaustive check lint types docs constraints clean

train: .venv/installed
	$(BIN)/python train.py experiment=meanflow_dit

demo: .venv/installed-demo
	$(BIN)/python demo.py

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

kills: .venv/installed-dev
	$(BIN)/python -m pytest -s -k killed tests/test_faults.py tests/test_resume.py --kills=20

exhaustive: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m exhaustive

check: lint types

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/python docs/tools/config_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

constraints: .venv/installed-dev .venv/installed-docs
	$(BIN)/python docs/tools/constraints.py

clean:
	rm -rf .venv site *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Triptych needs Python 3.11 or newer; this is $$($(PYTHON) --version). Use: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv; PyTorch is several gigabytes: some minutes."
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv with the test extras; PyTorch is several gigabytes: some minutes."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/installed $@

.venv/installed-demo: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv with the demo extra; PyTorch is several gigabytes: some minutes."
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch .venv/installed $@

.venv/installed-docs: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
