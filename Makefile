# `make demo` and `make test` set themselves up in .venv; nothing else is needed but Python 3.10 or later.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint clean

demo: $(INSTALLED) ## PyTorch and ONNX Runtime side by side: latency, throughput, proof of equal labels
	$(BIN)/enet-export --out demo
	$(BIN)/enet-bench --frames 50 --json demo/bench.json $(if $(CAMVID_DIR),--data $(CAMVID_DIR))
	@echo "demo/enet-fp32.onnx is the network, demo/bench.json the whole result"

test: $(INSTALLED) lint ## lint, types, tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: with it in place nothing pulls its gigabytes of CUDA packages
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt pip setuptools
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
