# make demo    judge a photograph and generated data with the embedded detector; write a report
# make test    native tests and pytest
# make wheel-test   the wheel in a new environment without torch
# make bench   the kernels beside other engines
# make lint    every check of style, types and layering
# make dev     (re)build the native parts into the source tree, for the environment in VENV

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := $(VENV)/bin
BUILD := build
# Where native-test builds.
NATIVE ?= $(BUILD)/native
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

SOURCES := $(shell find csrc cmake -type f 2>/dev/null) CMakeLists.txt setup.py
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h')
CMAKE_NATIVE = -G Ninja -DDEFAKEQ_TESTS=ON
# Optimized builds with sanitizers have the compiler warn of paths that cannot be taken.
CMAKE_SANITIZED = $(CMAKE_NATIVE) -DCMAKE_BUILD_TYPE=RelWithDebInfo

.PHONY: demo test wheel-test bench lint dev native-test native-asan native-ubsan native-sanitized native-bench \
	test-arm test-arm-torch bench-arm wheel-arm pytest format clean

$(VENV)/.base: pyproject.toml
	PYTHON=$(PYTHON) tools/bootstrap.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=64" cmake ninja "pybind11>=2.12"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.base
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $$($(BIN)/python tools/extra.py dev)
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

dev: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/defakeq demo --out $(BUILD)/demo

test: native-test pytest

pytest: $(VENV)/.built $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

wheel-test: $(VENV)/.built
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/check_wheel.py

bench: $(VENV)/.built $(VENV)/.dev
	$(BIN)/python -m pytest bench $(PYTEST_ARGS)

native-test:
	PYTHON=$(PYTHON) tools/bootstrap.sh tests
	cmake -S . -B $(NATIVE) $(CMAKE_NATIVE) -DDEFAKEQ_WERROR=ON
	cmake --build $(NATIVE) --parallel $(JOBS)
	$(PYTHON) tools/check_isa_symbols.py $(NATIVE)
	cd $(NATIVE) && ctest --output-on-failure --parallel $(JOBS) $(CTEST_ARGS)

native-asan:
	PYTHON=$(PYTHON) tools/bootstrap.sh tests
	cmake -S . -B $(BUILD)/asan $(CMAKE_SANITIZED) -DDEFAKEQ_ASAN=ON
	cmake --build $(BUILD)/asan --parallel $(JOBS)
	cd $(BUILD)/asan && ctest --output-on-failure --parallel $(JOBS) $(CTEST_ARGS)

native-ubsan:
	PYTHON=$(PYTHON) tools/bootstrap.sh tests
	cmake -S . -B $(BUILD)/ubsan $(CMAKE_SANITIZED) -DDEFAKEQ_UBSAN=ON
	cmake --build $(BUILD)/ubsan --parallel $(JOBS)
	cd $(BUILD)/ubsan && ctest --output-on-failure --parallel $(JOBS) $(CTEST_ARGS)

native-sanitized:
	PYTHON=$(PYTHON) tools/bootstrap.sh tests
	cmake -S . -B $(BUILD)/sanitized $(CMAKE_SANITIZED) -DDEFAKEQ_ASAN=ON -DDEFAKEQ_UBSAN=ON
	cmake --build $(BUILD)/sanitized --parallel $(JOBS)
	cd $(BUILD)/sanitized && ctest --output-on-failure --parallel $(JOBS) $(CTEST_ARGS)

# 64-bit ARM, emulated CPU by CPU (docs/boards.md)
test-arm: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(BIN))/python JOBS=$(JOBS) tools/arm/test.sh $(ARM_TESTS)

test-arm-torch: $(VENV)/.built
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(BIN))/python JOBS=$(JOBS) tools/arm/test_torch.sh

wheel-arm: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(BIN))/python tools/arm/wheel.sh

bench-arm: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(BIN))/python JOBS=$(JOBS) tools/arm/bench.sh

native-bench:
	PYTHON=$(PYTHON) tools/bootstrap.sh tests
	cmake -S . -B $(BUILD)/bench -G Ninja -DDEFAKEQ_BENCH=ON
	cmake --build $(BUILD)/bench --parallel $(JOBS)
	$(BUILD)/bench/defakeq_bench

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python tools/check_layers.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(BUILD) *.egg-info defakeq_kernels/*.so
