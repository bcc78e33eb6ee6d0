# `make demo` and `make test` need Python 3.11 (or newer, where TensorFlow has wheels) and pip.
PYTHON ?= $(firstword $(shell command -v python3.11) python3)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help demo test lint format clean
help:
	@echo "make demo    train a standard and a pivot network on digits, compare them (minutes)"
	@echo "make test    run the tests"
	@echo "make lint    check style"
	@echo "make clean   remove the environment and the demo's runs"

$(VENV)/base: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@

demo: $(VENV)/base
	$(BIN)/python bin/train --dataset=digits --loss=standard --name=demo-standard --log_steps=100
	$(BIN)/python bin/train --dataset=digits --loss=pivot --name=demo-pivot --log_steps=100
	$(BIN)/python examples/compare_runs.py runs/demo-standard runs/demo-pivot

test: $(VENV)/test
	$(BIN)/python -m pytest

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs/demo-standard runs/demo-pivot
