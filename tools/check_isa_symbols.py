"""Checks that objects compiled for one instruction set share no functions with other objects.

The linker keeps one of several copies of an inline function. If a copy compiled with AVX-512
were kept, code for every processor would use it. So each weak function that such an object defines
must belong to the namespace of its instruction set, or mention one of its types.

Usage: check_isa_symbols.py BUILD_DIRECTORY
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

OBJECTS = re.compile(r"defakeq_kernels_(\w+)\.dir")


def foreign_symbols(path: Path, isa: str) -> list[str]:
    text = subprocess.run(
        ["nm", "--defined-only", "-C", str(path)], check=True, capture_output=True, text=True
    ).stdout
    found = []
    for line in text.splitlines():
        kind, name = line.split(maxsplit=2)[1:]
        if kind in "WV" and f"{isa}::" not in name:
            found.append(f"{path.name}: {name}")
    return found


def main() -> int:
    build = Path(sys.argv[1])
    problems, objects = [], 0
    for path in sorted(build.rglob("*.o")):
        match = OBJECTS.search(str(path))
        if match and match.group(1) != "scalar":
            objects += 1
            problems += foreign_symbols(path, match.group(1))
    for problem in problems:
        print(f"shared with other instruction sets: {problem}", file=sys.stderr)
    print(f"isa symbols: {objects} objects, {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
