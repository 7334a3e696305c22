"""The machine code of the GPU kernels keeps to its budget on every architecture; no GPU needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "triton"))
import static_cases  # noqa: E402

from defakeq_kernels.triton import config  # noqa: E402


@pytest.mark.parametrize("arch", static_cases.ARCHITECTURES)
@pytest.mark.parametrize("name", static_cases.CASES)
def test_machine_code(name: str, arch: int) -> None:
    budget = json.loads(static_cases.BUDGET.read_text())
    wanted = static_cases.CASES[name][2]
    for kernel, r in static_cases.reports(name, arch).items():
        assert r.stack == r.local == r.like("LDL|STL") == 0, "registers spill"
        assert r.shared <= config.DEVICES[arch].shared
        allowed = budget["kernels"][f"{name} / {kernel} / sm_{arch}"]
        if triton.__version__ == budget["triton"]:  # counts are those of one compiler
            assert r.per_mma <= allowed["per_mma"]
            assert r.instructions <= allowed["instructions"]
        if kernel not in ("product_kernel", "gemv_kernel"):
            continue
        assert r.like(wanted[arch]) > 0
        others = {"IMMA", "IGMMA", "HMMA", "HGMMA"} - {wanted[arch]}
        assert not any(r.like(other) for other in others - {"IMMA"})
        for loop in r.loops:
            # 4 bytes: the scales of groups and their zero points
            loads = {n for n in loop if n.startswith(("LDG.", "LDGSTS"))}
            if kernel == "gemv_kernel" and "groups" in name:
                loads.discard("LDGSTS.E")
            # Hopper's layout of half-precision operands takes the weights 8 bytes at a time.
            widths = ("128", "64") if wanted[arch] == "HGMMA" or "728" in name else ("128",)
            # a load that is not asynchronous waits for memory at every step
            assert not any(n.startswith("LDG.") for n in loop)
            assert loads
            assert all(n.endswith(widths) for n in loads), loads
            assert any(n.endswith("128") for n in loads)
