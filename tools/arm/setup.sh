#!/bin/sh
# Installs what building and testing for 64-bit ARM on an x86-64 Debian machine needs: a cross
# compiler, a CPU emulator, GoogleTest's source and, with "python", an arm64 root file system with
# Python below $DEFAKEQ_ARM_HOME (default: build/arm); with "bench" also llvm-mca, clang and the
# emulator's instruction counter. Steps whose result is there are skipped.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
home=${DEFAKEQ_ARM_HOME:-$root/build/arm}
missing=""
need() { missing="$missing $1"; }

command -v qemu-aarch64 >/dev/null 2>&1 || need qemu-user
command -v aarch64-linux-gnu-g++ >/dev/null 2>&1 || need g++-aarch64-linux-gnu
[ -e /usr/src/googletest/CMakeLists.txt ] || need libgtest-dev
case " $* " in
  *" python "*) command -v mmdebstrap >/dev/null 2>&1 || need mmdebstrap ;;
esac
case " $* " in
  *" bench "*) command -v llvm-mca-19 >/dev/null 2>&1 || need "llvm-19 clang-19" ;;
esac
if [ -n "$missing" ]; then
  if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  else
    echo "missing:$missing" >&2
    echo "install them (on Debian: sudo apt-get install$missing) and run this again" >&2
    exit 1
  fi
fi
mkdir -p "$home"
case " $* " in
  *" bench "*)
    for name in count_instructions:libcount count_misses:libmisses; do
      source=$root/tools/arm/${name%:*}.c library=$home/${name#*:}.so
      if [ ! "$library" -nt "$source" ]; then
        cc -O2 -fPIC -shared -fvisibility=hidden "$source" -o "$library"
      fi
    done
    ;;
esac
case " $* " in
  *" python "*)
    if [ ! -x "$home/rootfs/usr/bin/python3.11" ]; then
      rm -rf "$home/rootfs"
      # no package runs a script of its own, so nothing is emulated while it is made
      mmdebstrap --quiet --arch=arm64 --variant=extract \
        --include=python3-minimal,python3,python3-pip,python3-numpy,libpython3-dev,libstdc++6,libgcc-s1,libgomp1,zlib1g \
        bookworm "$home/rootfs"
      # numpy's BLAS and LAPACK are chosen by scripts otherwise
      for lib in blas lapack; do
        ln -sf "$lib/lib$lib.so.3" "$home/rootfs/usr/lib/aarch64-linux-gnu/lib$lib.so.3"
      done
      mkdir -p "$home/rootfs/proc" "$home/rootfs/sys/devices/system/cpu"
      echo 0 | tee "$home/rootfs/sys/devices/system/cpu/possible" >"$home/rootfs/sys/devices/system/cpu/present"
    fi
    ;;
esac
echo "ready: $home"
