# `make demo` and `make test` set themselves up in .venv; nothing else is needed but Python 3.10 or later.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
WEIGHTS := enet_deploy/weights/enet-camvid.safetensors

.PHONY: demo test lint clean

demo: $(INSTALLED) ## PyTorch and ONNX Runtime side by side: latency, throughput, proof of equal labels
	$(BIN)/enet-export --logits --out demo
	$(BIN)/enet-bench $(WEIGHTS) demo/enet-fp32.onnx --frames 50 --json demo/bench.json \
		$(if $(CAMVID_DIR),--data $(CAMVID_DIR))
	@echo "demo/enet-fp32.onnx is the network, demo/bench.json the whole result"

test: $(INSTALLED) lint ## lint, types, tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first, at the pinned version: what comes after it finds it in place. The default index has the CUDA build for
# Linux, of several gigabytes; on a machine without a GPU, install the CPU build into .venv before.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt pip setuptools
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
