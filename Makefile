# make demo: a whole training in about two minutes.  make test: the tests.  make check: lint and types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := lora,trl,metrics,tensorboard,test,lint

.PHONY: setup demo test check format docs bench bench-planner bench-gpu soak clean

setup: $(VENV)/.installed

# torch first: DeepSpeed's own set-up imports it
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "making $(VENV) with torch, DeepSpeed, transformers and the test tools: some minutes, 2 GB and more"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools wheel torch
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/dslm train quickstart
	@echo "  . $(VENV)/bin/activate puts dslm on the PATH"

test: setup
	$(BIN)/pytest --numprocesses 2 --dist loadgroup

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/docs.py --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python scripts/docs.py $(RUN)

bench: setup
	$(BIN)/python -m benchmarks

bench-planner: setup
	$(BIN)/python -W ignore -m benchmarks.planner

bench-gpu: setup
	$(BIN)/python -m benchmarks.planner_gpu

soak: setup
	$(BIN)/python -m benchmarks.soak

clean:
	rm -rf $(VENV) runs dist build
