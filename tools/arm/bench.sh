#!/bin/sh
# Counts instructions of this project's kernels and of other engines' aarch64 wheels under emulation,
# and models the inner loops: bench/results/arm.json.
set -eu
cd "$(dirname "$0")/../.."
tools/arm/setup.sh python bench
home=${DEFAKEQ_ARM_HOME:-$PWD/build/arm}
python=${PYTHON:-python3}
build=build/aarch64-linux
"$python" tools/arm/configure.py "$build" "$home" -DDEFAKEQ_BENCH=ON
cmake --build "$build" --parallel "${JOBS:-2}" --target defakeq_bench dq_run
if [ ! -d "$home/site/ncnn" ]; then
  "$python" -m pip install --quiet --no-deps --only-binary=:all: --target "$home/site" \
    --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    --python-version 3.11 --implementation cp --abi cp311 \
    numpy==1.26.4 onnxruntime==1.32.0 ncnn==1.0.20261020
fi
if [ ! -d "$home/tools/pnnx" ]; then
  "$python" -m pip install --quiet --no-deps --target "$home/tools" pnnx==20261020
fi
"$python" -c "import onnx, onnxruntime" 2>/dev/null ||
  "$python" -m pip install --quiet onnx onnxruntime==1.32.0
PYTHONPATH=python:.:$home/tools "$python" -m bench.arm --build "$build" --home "$home" \
  --jobs "${JOBS:-2}" --json bench/results/arm.json
