# `make demo` and `make test` need Python 3.11 (or newer, where TensorFlow has wheels) and pip.
PYTHON ?= $(firstword $(shell command -v python3.11) python3)
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = saved/demo-standard,saved/demo-pivot,saved/demo-cascade

.PHONY: help demo test test-all lint format tables docs clean
help:
	@echo "make demo    train a standard, a pivot and a cascade network on digits, compare them"
	@echo "make test    run the tests"
	@echo "make test-all  with those that take long"
	@echo "make lint    check style and types, and that tables are those of their JSON"
	@echo "make tables  write the tables of README and docs/ from their JSON"
	@echo "make docs    make the documentation with the reference, as pages in site/"
	@echo "make clean   remove the environment and the demo's runs"

$(VENV)/base: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@

$(VENV)/docs: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

demo: $(VENV)/base
	$(BIN)/python bin/train --dataset=digits --loss=standard --name=demo-standard --log_steps=100
	$(BIN)/python bin/train --dataset=digits --loss=pivot --name=demo-pivot --log_steps=100
	$(BIN)/python bin/train --loss=pivot --cascade_source=saved/demo-pivot --name=demo-cascade \
	    --log_steps=100
	$(BIN)/python bin/evaluate --target=$(DEMO) --attack=step_ll,step_fgsm,iter_fgsm,pgd,autoattack \
	    --output=reports/demo
	$(BIN)/python bin/evaluate --target=$(DEMO) --source=$(DEMO) --attack=iter_fgsm \
	    --diagnosis_images=0 --output=reports/demo-black-box

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ''

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make_tables.py --check

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables:
	$(PYTHON) docs/make_tables.py

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python docs/check_links.py site

clean:
	rm -rf $(VENV) site runs/demo-* saved/demo-* banks/demo-* reports/demo*
