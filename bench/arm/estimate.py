"""Milliseconds on boards that nobody measured: an estimate from counts and llvm-mca's rates.

cycles = MACs / (MACs a cycle of the inner loop) + (instructions - those of the loop) / 2

Fewer instructions than those of the loop mean that Winograd's loop ran, with a quarter of the MACs.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Board(NamedTuple):
    """A board: its core in the rows and in the loops, its clock, its loop at 4 bits."""

    name: str
    rows: str
    model: str
    gigahertz: float
    kernel: str


BOARDS = (
    Board("Raspberry Pi 4", "cortex-a53", "cortex-a72", 1.8, "gemm, 6 bits and fewer, smlal"),
    Board("Raspberry Pi 5", "cortex-a76", "cortex-a76", 2.4, "gemm, 8 bits and fewer, sdot"),
    Board("phone, Cortex-A76", "cortex-a76", "cortex-a76", 2.8, "gemm, 8 bits and fewer, sdot"),
)

WINOGRAD = "winograd 3x3, smlal"


def estimates(
    rows: list[dict[str, Any]], loops: list[dict[str, Any]], macs: dict[str, int]
) -> list[dict[str, Any]]:
    """Return an estimate for each row of ours at 4 bits whose MACs are known, on each board."""
    found = []
    by_name = {(loop["kernel"], loop["model"]): loop for loop in loops}
    for board in BOARDS:
        for row in rows:
            work = row["work"]
            loop = by_name[board.kernel, board.model]
            ours = row["engine"] == "defakeq" and row["bits"] == 4 and row["cpu"] == board.rows
            if not ours or work not in macs:
                continue
            products = float(macs[work])
            winograd = by_name.get((WINOGRAD, board.model))
            fewer = row["instructions"] < products * loop["instructions"] / loop["macs"]
            if winograd is not None and fewer:
                loop, products = winograd, products / 4
            inside = products * loop["instructions"] / loop["macs"]
            cycles = products / loop["mac_per_cycle"] + max(row["instructions"] - inside, 0) / 2
            found.append(
                {"work": work, "board": board.name, "macs": macs[work],
                 "estimated_ms": round(cycles / board.gigahertz * 1e-6, 2)}
            )  # fmt: skip
    return found
