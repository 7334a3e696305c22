#!/bin/sh
# Builds the torch ops for 64-bit ARM Linux against torch's wheel and runs them in the emulated root
# file system: the bytes of a convolution are those of this machine's torch, the embedded detector's
# the golden ones. torch needs LSE atomics, so no Cortex-A53 or A72. Fetches 150 MB the first time.
set -eu
cd "$(dirname "$0")/../.."
tools/arm/setup.sh python
home=${DEFAKEQ_ARM_HOME:-$PWD/build/arm}
python=${PYTHON:-python3}
build=build/aarch64-torch
site=$home/torch-site
if [ ! -f "$site/torch/lib/libtorch_cpu.so" ]; then
  "$python" -m pip install --quiet --no-deps --only-binary=:all: --upgrade --target "$site" \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform any \
    --python-version 3.11 --implementation cp --abi cp311 \
    torch==2.10.0 numpy==1.26.4 typing_extensions sympy mpmath jinja2 MarkupSafe networkx filelock fsspec
fi
"$python" tools/arm/configure.py "$build" "$home" "-DDEFAKEQ_TORCH_DIR=$site/torch" \
  "-DDEFAKEQ_TORCH_CPU=$site/torch/lib/libtorch_cpu.so"
cmake --build "$build" --parallel "${JOBS:-2}"
package=$build/package
rm -rf "$package" && mkdir -p "$package"
cp -r defakeq_kernels "$package"
rm -f "$package"/defakeq_kernels/*.so
cmake --install "$build" --prefix "$package/defakeq_kernels" --component python >/dev/null
rm -f "$build/layer.pt"
PYTHONPATH=. "$python" tools/arm/torch_check.py "$build/layer.pt" >"$build/here.txt"
for cpu in cortex-a76 max; do
  echo "== $cpu"
  PYTHONPATH=$package:$site tools/arm/emulate.sh "$cpu" python3 tools/arm/torch_check.py \
    "$build/layer.pt" >"$build/there.txt"
  cat "$build/there.txt"
  cmp "$build/here.txt" "$build/there.txt"
done
