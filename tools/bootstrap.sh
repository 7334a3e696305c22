#!/bin/sh
# Installs the system packages that a build needs, where they are missing and this is a Debian-like
# system with the rights to install: a C++ compiler, Python headers and venv; with "tests" also CMake,
# Ninja and GoogleTest; with "browser" Chromium, for a test of reports. Elsewhere it names what is
# missing.
set -eu
missing=""
need() { missing="$missing $1"; }

command -v c++ >/dev/null 2>&1 || need g++
command -v git >/dev/null 2>&1 || need git
python=${PYTHON:-python3}
if command -v "$python" >/dev/null 2>&1; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
  "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || need python3-dev
else
  need python3
  need python3-venv
  need python3-dev
fi
wants() { case " $wanted " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
wanted="$*"
if wants tests; then
  command -v cmake >/dev/null 2>&1 || need cmake
  command -v ninja >/dev/null 2>&1 || need ninja-build
  found=no
  for prefix in /usr /usr/local; do
    if [ -e "$prefix/include/gtest/gtest.h" ]; then found=yes; fi
  done
  [ $found = yes ] || need libgtest-dev
fi
if wants browser; then
  command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || need chromium
fi
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  echo "installing:$missing"
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
else
  echo "missing:$missing" >&2
  echo "install them (on Debian: sudo apt-get install$missing) and run this again" >&2
  exit 1
fi
