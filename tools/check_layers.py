"""Checks the layering of the project.

- C++ outside ``csrc/bindings`` includes neither torch nor Python headers;
- a C++ folder includes only folders below it (kernels, pack, dispatch, ops, runtime, bindings);
- ``defakeq_kernels`` does not import ``defakeq``;
- every kernel file is named in a native test and in a benchmark.
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
            if path.suffix in {".cpp", ".h", ".py"}:
                parts.append(path.read_text())
    return "\n".join(parts)


def check_kernels() -> list[str]:
    """A kernel file dq_<family>_..__<isa> is covered when its family is named."""
    tests, benches = text_of("csrc/tests", "tests"), text_of("csrc/bench", "bench")
    problems = []
    for path in sorted((ROOT / "csrc/kernels").rglob("dq_*.cpp")):
        if not KERNEL.match(path.stem):
            problems.append(f"{path.relative_to(ROOT)}: not named dq_<what>__<isa>.cpp")
            continue
        family = "_".join(path.stem.split("__")[0].split("_")[:2])
        for kind, text in (("test", tests), ("benchmark", benches)):
            if not re.search(rf"\b{family}", text):
                problems.append(f"{path.relative_to(ROOT)}: no {kind} names {family}")
    return problems


def main() -> int:
    problems = check_includes() + check_imports() + check_kernels()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"layering: {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
