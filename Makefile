# make demo: a whole training in about two minutes.  make test: the tests.  make check: lint and types.
# make coverage: what the tests execute.  make mutants: what they would notice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := default
EXTRAS := lora,trl,quantize,metrics,tensorboard,test,lint

# every parser with hostile inputs, for SECONDS in all
SECONDS ?= 300

.PHONY: setup demo test coverage mutants check format docs fuzz verify-faults verify-versions bench bench-planner bench-gpu matrix soak clean

setup: $(VENV)/.installed

# make demo TORCH=cpu: the build of torch without CUDA, from PyTorch's own index
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) scripts/setup.py $(VENV) --extras $(EXTRAS) --torch $(TORCH)
	@touch $@

demo: setup
	$(BIN)/dslm train quickstart
	@echo "  . $(VENV)/bin/activate puts dslm on the PATH"

test: setup
	$(BIN)/pytest --numprocesses 3

coverage: setup
	@mkdir -p build/coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses 3
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=miss

mutants: setup
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(BIN)/python -m scripts.mutants

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

# all planted faults, and all layouts that must pass
verify-faults: setup
	$(BIN)/python -m benchmarks.verify

# the example script of transformers that it compares with imports evaluate; RUN_CLM=FILE names the script
bench: setup
	$(BIN)/pip install --quiet evaluate==0.4.6
	$(BIN)/python -m benchmarks

# known wrong versions, each installed for real in an environment of its own
verify-versions: setup
	$(BIN)/python -m benchmarks.wrong_versions

bench-planner: setup
	$(BIN)/python -W ignore -m benchmarks.planner

bench-gpu: setup
	$(BIN)/python -m benchmarks.planner_gpu

# what works with what, and every layout into every other: what nothing is known of yet; ONLY='llama zenflow'
# chooses, MINUTES=9 ends it, AGAIN=1 tries known ones anew
matrix: setup
	$(BIN)/python -m benchmarks.matrix $(ONLY) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(AGAIN),--again)
	$(BIN)/python -m benchmarks.resumes $(ONLY) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python scripts/docs.py

soak: setup
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.soak_layouts

clean:
	rm -rf $(VENV) runs dist build
