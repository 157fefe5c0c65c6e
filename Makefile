# The few commands people type. Everything runs in .venv, which the first of them makes.

PYTHON ?= python3
BIN := .venv/bin
# Keeps the folder `kernels` from shadowing Hugging Face's package of that name.
export PYTHONSAFEPATH := 1
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint types imports bench consumers clean

demo: .venv/.installed
	$(BIN)/python examples/demo.py

test: .venv/.installed
	$(BIN)/python -m pytest --numprocesses auto $(ARGS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

imports: .venv/.installed
	$(BIN)/lint-imports

bench: export PYTHONPATH := benchmarks
bench: .venv/.installed
	$(BIN)/python benchmarks/import_cost.py
	$(BIN)/python benchmarks/ptq_cost.py
	$(BIN)/python benchmarks/moe_cost.py

# vLLM's loading code, for tests/end_to_end/test_vllm_loads.py, skipped without it; 2 GB where torch is a CPU build.
consumers:
	benchmarks/vllm_environment.sh .consumers/vllm

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0 --editable '.[hf,dev]'
	touch $@

clean:
	rm -rf .venv dist build
