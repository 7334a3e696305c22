#!/bin/sh
# Builds the wheel for 64-bit ARM Linux from the cross build, checks its size, and its tag where
# auditwheel is installed, installs it into the emulated root file system as a user would, and judges the embedded
# detector's golden bytes there. The wheel is left in dist/.
set -eu
cd "$(dirname "$0")/../.."
tools/arm/setup.sh python
python=${PYTHON:-python3}
home=${DEFAKEQ_ARM_HOME:-$PWD/build/arm}
build=build/aarch64-linux
tag=manylinux_2_35_aarch64
"$python" tools/arm/configure.py "$build" "$home"
rm -rf build/wheel-arm
DEFAKEQ_TORCH=off DEFAKEQ_BUILD_DIRECTORY=$build "$python" setup.py --quiet \
  build --build-base build/wheel-arm bdist_wheel --plat-name "$tag" --bdist-dir build/bdist-arm
wheel=$(ls -t dist/defakeq-*-"$tag".whl | head -n 1)
"$python" tools/check_wheel.py tag "$wheel"
rm -rf "$home/rootfs/opt/defakeq"
tools/arm/emulate.sh cortex-a72 python3 -m pip install --quiet --no-deps --no-index \
  --target "$home/rootfs/opt/defakeq" "$wheel"
PYTHONPATH=$home/rootfs/opt/defakeq tools/arm/emulate.sh cortex-a72 python3 tools/detector_golden.py run
