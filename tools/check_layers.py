"""Checks the layering of the project.

- C++ outside ``csrc/bindings`` includes neither torch nor Python headers;
- a C++ folder includes only folders below it (kernels, pack, dispatch, ops, runtime, bindings);
- ``defakeq_kernels`` does not import ``defakeq``;
- every kernel has a native test and a benchmark.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
FOREIGN = re.compile(r"^(torch/|ATen/|c10/|pybind11/|Python\.h$|numpy/)")
ALLOWED = {
    "include": {"defakeq"},
    "kernels": {"defakeq", "kernels"},
    "dispatch": {"defakeq", "kernels", "dispatch"},
    "pack": {"defakeq", "kernels", "dispatch", "pack"},
    "ops": {"defakeq", "kernels", "dispatch", "pack", "ops"},
    "runtime": {"defakeq", "kernels", "dispatch", "pack", "ops", "runtime"},
    "bindings": {"defakeq", "bindings"},
}
PROJECT = {"defakeq", *ALLOWED}
# What benchmarks call a kernel family, where that is not its own name.
BENCH_NAMES = {"rows": ("quantize", "row_sums")}
KERNEL = re.compile(r"^dq_[a-z0-9_]+__[a-z0-9]+$")


def check_includes() -> list[str]:
    problems = []
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in {".h", ".cpp"}:
            continue
        room = path.relative_to(ROOT / "csrc").parts[0]
        name = path.relative_to(ROOT)
        for header in INCLUDE.findall(path.read_text()):
            if room != "bindings" and FOREIGN.match(header):
                problems.append(f"{name}: includes {header}; only csrc/bindings may")
            top = header.split("/")[0]
            if "/" in header and top in PROJECT and top not in ALLOWED.get(room, PROJECT):
                problems.append(f"{name}: includes {header}, which is a higher layer than {room}")
    return problems


def imported_modules(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
    return names


def check_imports() -> list[str]:
    problems = []
    for path in sorted((ROOT / "defakeq_kernels").rglob("*.py")):
        for module in imported_modules(path):
            if module.split(".")[0] == "defakeq":
                problems.append(f"{path.relative_to(ROOT)}: imports {module}, a higher layer")
    return problems


def text_of(*folders: str) -> str:
    parts = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".cpp", ".h", ".py", ".json"}:
                parts.append(path.read_text())
    return "\n".join(parts)


def names(word: str, text: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", text) is not None


def check_kernels() -> list[str]:
    """Every entry of the kernel table is named in a native test; every family in a benchmark."""
    problems = []
    table = (ROOT / "csrc/kernels/kernel_table.h").read_text()
    tests = text_of("csrc/tests")
    for entry in re.findall(r"\(\*(\w+)\)\(", table.split("struct KernelTable", 1)[1]):
        if not names(entry, tests):
            problems.append(f"csrc/tests: no test names the kernel {entry}")
    benches = text_of("csrc/bench", "bench")
    for path in sorted((ROOT / "csrc/kernels").rglob("dq_*.cpp")):
        if not KERNEL.match(path.stem):
            problems.append(f"{path.relative_to(ROOT)}: not named dq_<what>__<isa>.cpp")
            continue
        family = path.stem.split("__")[0].split("_")[1]
        if not any(names(word, benches) for word in BENCH_NAMES.get(family, (family,))):
            problems.append(f"{path.relative_to(ROOT)}: no benchmark names {family}")
    return problems


def main() -> int:
    problems = check_includes() + check_imports() + check_kernels()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"layering: {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
