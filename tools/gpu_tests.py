"""`pytest -m gpu` in several processes: most of its time is compilation.

    python tools/gpu_tests.py [--processes 8] [pytest's arguments]

Every process takes each n-th test. Exit code: the highest of the processes'.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Share:
    """Keeps the tests of one process.

    Args:
        number, of: which process, and how many there are.
    """

    def __init__(self, number: int, of: int) -> None:
        self.number, self.of = number, of

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called by pytest."""
        items[:] = items[self.number :: self.of]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    arguments, more = parser.parse_known_args()
    if arguments.number is not None:
        share = Share(arguments.number, arguments.processes)
        command = ["-q", "-m", "gpu", "-p", "no:cacheprovider", *more]
        return int(pytest.main([*command, str(ROOT / "tests/test_triton_gpu.py")], plugins=[share]))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--processes", str(arguments.processes),
             "--number", str(number), *more],
            cwd=ROOT,
        )
        for number in range(arguments.processes)
    ]  # fmt: skip
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main())
