# make demo: a whole training in about two minutes.  make test: the tests.  make check: lint and types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := default
EXTRAS := lora,trl,metrics,tensorboard,test,lint

# every parser with hostile inputs, for SECONDS in all
SECONDS ?= 300

.PHONY: setup demo test check format docs fuzz bench bench-planner bench-gpu soak clean

setup: $(VENV)/.installed

# make demo TORCH=cpu: the build of torch without CUDA, from PyTorch's own index
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/setup.py $(VENV) --extras $(EXTRAS) --torch $(TORCH)
	@touch $@

demo: setup
	$(BIN)/dslm train quickstart
	@echo "  . $(VENV)/bin/activate puts dslm on the PATH"

test: setup
	$(BIN)/pytest --numprocesses 2

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/docs.py --check
	$(BIN)/python scripts/profiles.py --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

profiles: setup
	$(BIN)/python scripts/profiles.py --all

docs: setup
	$(BIN)/python scripts/docs.py $(RUN)

fuzz: setup
	$(BIN)/python -m tests.fuzz $(SECONDS)

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
