# `make demo`, `make gpu` and `make test` set themselves up in .venv, `make test-minimal` in .venv-minimal, `make test-ros`
# in .venv-ros, `make docs` in .venv-docs, `make release-check` in .venv-release; nothing else is needed but Python 3.10 or
# later.

PYTHON ?= python3
FUZZ_SECONDS ?= 60
PARALLEL ?= -n logical --dist worksteal
BIN := .venv/bin
INSTALLED := .venv/installed
WEIGHTS := enet_deploy/weights/enet-camvid.safetensors
MINIMAL := .venv-minimal
ROS := .venv-ros
ROS_PYTHON ?= python3.11
DOCS := .venv-docs
RELEASE := .venv-release

.PHONY: demo gpu test test-fast test-docs test-minimal test-ros fuzz docs release-check lint clean

demo: $(INSTALLED) ## fp32 and int8 on PyTorch, ONNX Runtime and OpenVINO side by side with a report; an engine for an RTX 3060
	$(BIN)/enet-export --logits --out demo
	$(BIN)/enet-export --int8 --logits --out demo
	$(BIN)/enet-export --int8 --target ort --logits --out demo
	$(BIN)/enet-export --fp16 --int8 --engine trt-rtx --compute-capability 8.6 --out demo
	$(BIN)/enet-bench $(WEIGHTS) demo/enet-fp32.onnx demo/enet-int8.onnx demo/enet-int8-ort.onnx --frames 100 --json demo/bench.json \
		--html demo/report.html $(if $(CAMVID_DIR),--data $(CAMVID_DIR))
	@echo "demo/ holds the graphs, the engine with its card, bench.json with the whole result, and the report for a browser:"
	@echo "$(CURDIR)/demo/report.html"

gpu: $(INSTALLED) ## measures this machine's NVIDIA card in under ten minutes: gpu-report/gpu-report.zip, to send
	$(BIN)/python -m enet_deploy.benchmarks.gpu $(if $(CAMVID_DIR),--data $(CAMVID_DIR)) $(ARGS)

test: $(INSTALLED) lint ## lint, types, tests
	$(BIN)/python -m pytest $(PARALLEL) -m "not docs"

test-fast: $(INSTALLED) lint ## the same without the tests that take seconds each
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not docs"

test-docs: $(INSTALLED) ## the commands, Python and notebook of the documentation, the studies behind its figures, pages in a browser
	$(BIN)/python -m pytest $(PARALLEL) -m docs

# No constraints: what comes out of the index today. Not installed itself: the tests then import the checkout.
test-minimal: ## the tests with the newest releases, a headless OpenCV, and no OpenVINO, TensorRT, PyAV or rosbags
	test -x $(MINIMAL)/bin/python || $(PYTHON) -m venv $(MINIMAL)
	$(MINIMAL)/bin/pip install -q --upgrade torch numpy opencv-python-headless safetensors onnx onnxscript onnxruntime \
		tqdm jinja2 matplotlib rich psutil pytest pytest-xdist hypothesis
	$(MINIMAL)/bin/python -m pytest $(PARALLEL)

# The wheels of ROS 2 Kilted are for Python 3.11. rclpy is enough to run the node; no other part of ROS is needed.
test-ros: ## the ROS 2 node with the real rclpy, on this machine's loopback
	test -x $(ROS)/bin/python || $(ROS_PYTHON) -m venv $(ROS)
	$(ROS)/bin/pip install -q 'ros-rclpy[fastrtps]' ros-sensor-msgs ros-std-msgs ros-diagnostic-msgs ros-rcl-interfaces
	$(ROS)/bin/pip install -q -c constraints.txt -e '.[cpu,ros,video]' onnx pytest psutil
	$(ROS)/bin/pip install -q --no-deps -e examples/ros2_node
	$(ROS)/bin/python -m pytest tests/ros

fuzz: $(INSTALLED) ## every reader of foreign files against damaged and crafted ones, for so many seconds
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(FUZZ_SECONDS)

# The pages are made from the text of the code, so PyTorch is not needed; ruff formats signatures.
docs: ## the documentation's site, in build/site; a warning or a dead link is an error. `make docs ARGS=serve` while you write
	test -x $(DOCS)/bin/mkdocs || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install -q -c constraints.txt -e '.[docs]' ruff
	NO_MKDOCS_2_WARNING=1 PATH="$(DOCS)/bin:$$PATH" $(DOCS)/bin/mkdocs $(or $(ARGS),build) --strict

# The wheel is installed without an extra: numpy, OpenCV and Pillow alone. The sample picture must come out in more than
# one colour, in a folder without this checkout, and nothing may have brought PyTorch.
release-check: ## builds the wheel, checks its metadata, and segments the sample picture with it in a new environment
	rm -rf build dist $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/build
	$(RELEASE)/build/bin/pip install -q -c constraints.txt build twine
	$(RELEASE)/build/bin/python -m build --outdir dist .
	$(RELEASE)/build/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(RELEASE)/wheel
	$(RELEASE)/wheel/bin/pip install -q -c constraints.txt dist/*.whl
	cd $(RELEASE) && wheel/bin/enet-segment enet-camvid sample --legend --labels ids.png --out overlay.png
	cd $(RELEASE) && wheel/bin/python -c "import importlib.util as u, cv2; ids = cv2.imread('ids.png', -1); \
		assert ids.shape == (720, 960) and len(set(ids.flat)) > 6 and u.find_spec('torch') is None; print('the wheel works')"

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
	rm -rf .venv $(MINIMAL) $(ROS) $(DOCS) $(RELEASE) build dist demo gpu-report gpu-rehearsal *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
