"""Compares results of `defakeq bench ops --peers --json F` with the bars the kernels are held to.

    python bench/bars.py RESULT.json [RESULT_OF_AVX2.json]

The second file is of `DEFAKEQ_ISA=avx2 defakeq bench ops --bits 8,7,4,2 --work gemm --json F`.
Prints one line a bar with the figure reached; the exit code is 1 when one is missed.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defakeq.bench.ops import OURS, best_peer

GEMMS = (
    "gemm 196x768x768",
    "gemm 196x3072x768",
    "gemm 49x1024x1024",
    "gemm 1024x728x728",
    "gemm 4096x128x128",
)
CONVS = (
    "conv 3x3 64@64x64",
    "conv 3x3 128@32x32",
    "conv 3x3 256@16x16",
    "conv 1x1 728@16x16",
)
DEPTHWISE = "dwconv 3x3 728@16x16"
GEMV = "gemv 1x1024x4096"
WIDTHS = (8, 4, 2)


@dataclass
class Report:
    """The bars so far, and the rows of a result."""

    rows: list[dict[str, Any]]
    missed: int = 0
    lines: list[str] = field(default_factory=list)

    def ours(self, work: str, bits: int) -> dict[str, Any]:
        for row in self.rows:
            if (row["work"], row["bits"], row["engine"]) == (work, bits, OURS):
                return row
        return {}

    def bar(self, name: str, value: float | None, low: float = 0.0, high: float = 1e9) -> None:
        wanted = f">= {low:.2f}" if low > 0 else f"<= {high:.2f}"
        if value is None:
            self.lines.append(f"absent  {name:62} wanted {wanted}")
            self.missed += 1
            return
        good = low <= value <= high
        self.missed += not good
        self.lines.append(f"{'met' if good else 'MISSED':7} {name:62} {value:6.3f} wanted {wanted}")

    def ratio(self, top: dict[str, Any], bottom: dict[str, Any]) -> float | None:
        return top["us"] / bottom["us"] if top and bottom else None


def vnni(report: Report) -> None:
    for bits in WIDTHS:
        fractions = [report.ours(w, bits).get("of_peak") for w in GEMMS]
        for work, value in zip(GEMMS, fractions, strict=True):
            report.bar(f"{work}, {bits} bits: of peak", value, low=0.80)
            peer = best_peer(report.rows, work)
            name = f"{work}, {bits} bits: time / best peer ({peer.get('engine')})"
            report.bar(name, report.ratio(report.ours(work, bits), peer), high=1.0)
        known = [v for v in fractions if v is not None]
        mean = statistics.mean(known) if len(known) == len(GEMMS) else None
        report.bar(f"gemm mean, {bits} bits: of peak", mean, low=0.88)
    for work in CONVS:
        peer = best_peer(report.rows, work)
        for bits in WIDTHS:
            row = report.ours(work, bits)
            report.bar(f"{work}, {bits} bits: of peak", row.get("of_peak"), low=0.85)
            if bits in (8, 4):
                name = f"{work}, {bits} bits: time / best peer ({peer.get('engine')})"
                report.bar(name, report.ratio(row, peer), high=1.05 if bits == 8 else 1.08)
    peer = best_peer(report.rows, DEPTHWISE)
    for bits in WIDTHS:
        name = f"{DEPTHWISE}, {bits} bits: best peer ({peer.get('engine')}) / time"
        report.bar(name, report.ratio(peer, report.ours(DEPTHWISE, bits)), low=2.2)
    for bits, low in ((4, 1.6), (2, 2.0)):
        engine = f"ort MatMulNBits {bits}"
        peer = next((r for r in report.rows if (r["work"], r["engine"]) == (GEMV, engine)), {})
        name = f"{GEMV}, {bits} bits: {engine} / time"
        report.bar(name, report.ratio(peer, report.ours(GEMV, bits)), low=low)
    for variant, high in (
        ("half-out", 0.55),
        ("half-in-out", 0.30),
        ("half-precision-5", 1.35),
        ("half-precision-in-2", 1.20),
    ):
        for work in (*GEMMS, *CONVS):
            for bits in WIDTHS:
                value = report.ratio(
                    report.ours(f"{work} {variant}", bits), report.ours(work, bits)
                )
                report.bar(f"{work} {variant}, {bits} bits: of the dense time", value, high=high)
    add = next((r for r in report.rows if r["engine"] == "torch add"), {})
    for engine in (OURS, f"{OURS} linear", f"{OURS} conv2d"):
        small = next(
            (r for r in report.rows if (r["work"], r["engine"]) == ("small op 8", engine)), {}
        )
        report.bar(f"small op 8, {engine}: time / torch.add", report.ratio(small, add), high=4.0)


def avx2(report: Report) -> None:
    for bits in sorted({r["bits"] for r in report.rows if r["engine"] == OURS}, reverse=True):
        values = [report.ours(w, bits).get("of_peak") for w in GEMMS]
        known = [v for v in values if v is not None]
        mean = statistics.mean(known) if len(known) == len(GEMMS) else None
        report.bar(f"avx2 gemm mean, {bits} bits: of peak", mean, low=0.45 if bits == 8 else 0.80)


def main(paths: list[str]) -> int:
    if not 1 <= len(paths) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    missed = 0
    for path, judge in zip(paths, (vnni, avx2), strict=False):
        result = json.loads(Path(path).read_text())
        report = Report(result["rows"])
        judge(report)
        print("\n".join(report.lines))
        missed += report.missed
    print(f"{missed} missed or absent")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
