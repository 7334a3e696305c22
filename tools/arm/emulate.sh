#!/bin/sh
# Runs a 64-bit ARM program as a given CPU, in the root file system that setup.sh made, if it did.
# usage: emulate.sh [--count | --marks | --blocks | --misses] CPU PROGRAM [ARG ...]
#   CPU      cortex-a53, cortex-a72, cortex-a76, neoverse-n1, max, ... (qemu-aarch64 -cpu help); max has SVE
#            of 512 bits and SME, max-128 SVE of 128 bits and no SME, as the cores of phones and boards
#   PROGRAM  a program, or python3 for that of the root file system (PYTHONPATH is passed on)
# To the standard error, --count prints "instructions N", --marks also "mark N" at every reading of the
# clock and "call N" at every getsid(), --blocks also "block ADDRESS LENGTH EXECUTIONS" of every piece of code, --misses prints
# "first N" and "second N", the misses of two levels of data cache. An instruction that the CPU lacks
# ends in SIGILL. The guest's /proc/cpuinfo is made to match, since libraries read it.
set -eu
home=${DEFAKEQ_ARM_HOME:-$(cd "$(dirname "$0")/../.." && pwd)/build/arm}
plugin=""
case $1 in
  --count) plugin="-plugin $home/libcount.so" ;;
  --marks) plugin="-plugin $home/libcount.so,marks=on" ;;
  --blocks) plugin="-plugin $home/libcount.so,blocks=on" ;;
  --misses)
    case $2 in
      cortex-a53 | cortex-a72) plugin="-plugin $home/libmisses.so,l1=32,l2=512" ;;
      *) plugin="-plugin $home/libmisses.so,l1=64,l2=512" ;;
    esac
    ;;
esac
if [ -n "$plugin" ]; then shift; fi
cpu=$1
shift
sysroot=/usr/aarch64-linux-gnu
if [ -d "$home/rootfs" ]; then
  sysroot=$home/rootfs
  base="fp asimd evtstrm aes pmull sha1 sha2 crc32"
  dot="atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
  case $cpu in
    cortex-a53) part=0xd03 features=$base ;;
    cortex-a72) part=0xd08 features=$base ;;
    cortex-a76) part=0xd0b features="$base $dot" ;;
    neoverse-n1) part=0xd0c features="$base $dot" ;;
    *) part=0x051 features="$base $dot i8mm bf16 sve sve2" ;;
  esac
  printf 'processor\t: 0\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 1\n' \
    "$features" "$part" >"$sysroot/proc/cpuinfo.$$"
  mv "$sysroot/proc/cpuinfo.$$" "$sysroot/proc/cpuinfo" # others may be reading it
fi
if [ "$cpu" = max-128 ]; then cpu=max,sve-max-vq=1,sme=off; fi
if [ "$1" = python3 ]; then
  shift
  # shellcheck disable=SC2086
  exec qemu-aarch64 -L "$sysroot" -cpu "$cpu" $plugin -E PYTHONHOME=/usr -E PYTHONHASHSEED=0 \
    -E "PYTHONPATH=${PYTHONPATH:-}:/usr/lib/python3/dist-packages" "$sysroot/usr/bin/python3.11" "$@"
fi
# shellcheck disable=SC2086
exec qemu-aarch64 -L "$sysroot" -cpu "$cpu" $plugin "$@"
