"""Prints the requirements of one extra of pyproject.toml, one a line."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def requirements(extra: str) -> list[str]:
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]", 1)[1].split("\n[", 1)[0]
    match = re.search(rf"^{re.escape(extra)} = \[(.*?)\]", section, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SystemExit(f"extra: found {extra!r}, which pyproject.toml does not define")
    return re.findall(r'"([^"]+)"', match.group(1))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
