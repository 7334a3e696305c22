#!/bin/sh
# Builds for 64-bit ARM Linux and runs the native tests, dq_run and Python with the embedded detector
# under emulation, CPU by CPU, against the bytes that x86-64 gives.
# usage: test.sh [quick]   (quick: each CPU's own kernels, and the rest on two CPUs)
set -eu
cd "$(dirname "$0")/../.."
tools/arm/setup.sh python
build=build/aarch64-linux
home=${DEFAKEQ_ARM_HOME:-$PWD/build/arm}
python=${PYTHON:-python3}
jobs=${JOBS:-2}
"$python" tools/arm/configure.py "$build" "$home" -DDEFAKEQ_TESTS=ON -DDEFAKEQ_WERROR=ON
cmake --build "$build" --parallel "$jobs"
package=$build/package
rm -rf "$package" && mkdir -p "$package/defakeq_kernels"
cp defakeq_kernels/*.py "$package/defakeq_kernels"
cmake --install "$build" --prefix "$package/defakeq_kernels" --component python >/dev/null

"$python" tools/detector_golden.py input "$build/pictures.npy"
for cpu in cortex-a53 cortex-a72 cortex-a76 neoverse-n1 max; do
  echo "== $cpu"
  case $cpu in
    cortex-a53 | cortex-a72) best=neon ;;
    cortex-a76 | neoverse-n1) best=neondot ;;
    *) best=i8mm ;;
  esac
  filter="*"
  if [ "${1:-}" = quick ]; then
    filter="*/${best}_*:Dispatch.*:ProductS8.*"
    case $cpu in
      cortex-a53 | max) filter="$filter:Nodes.*:Program.*-Program.TenThousandMutations*" ;;
    esac
  fi
  tools/arm/emulate.sh "$cpu" "$build/defakeq_tests" --gtest_brief=1 --gtest_filter="$filter"
  tools/arm/emulate.sh "$cpu" "$build/dq_run" tests/data/detector/detector.dfq "$build/pictures.npy" \
    --output "$build/scores.npy" >/dev/null
  "$python" tools/detector_golden.py compare "$build/scores.npy"
  PYTHONPATH=$package tools/arm/emulate.sh "$cpu" python3 tools/detector_golden.py run
  # asked for more than there is, it says so and goes on
  tools/arm/emulate.sh "$cpu" -E DEFAKEQ_ISA=i8mm "$build/dq_run" tests/data/detector/detector.dfq \
    "$build/pictures.npy" --output "$build/scores.npy" >/dev/null
  "$python" tools/detector_golden.py compare "$build/scores.npy"
done
