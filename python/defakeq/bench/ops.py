"""Measures works in all engines and says what came out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from defakeq.bench.layers import native_contender, small_op_contenders
from defakeq.bench.machine import machine_record
from defakeq.bench.peers import Peers
from defakeq.bench.shapes import Work
from defakeq.bench.timing import Contender, interleave, pinned
from defakeq_kernels import _core

OURS = "defakeq"
ROUNDS = 15


def select(works: Sequence[Work], filters: Sequence[str]) -> list[Work]:
    """The works whose name contains one of ``filters``; all, when there are none.

    Raises:
        ValueError: none does.
    """
    chosen = [w for w in works if not filters or any(f in w.name for f in filters)]
    if not chosen:
        names = ", ".join(dict.fromkeys(w.base for w in works))
        raise ValueError(f"work: found {', '.join(filters)}; accepted is a part of one of: {names}")
    return chosen


def measure(
    works: Sequence[Work],
    *,
    threads: int = 1,
    bits: Sequence[int] = (8, 4, 2),
    peers: bool = False,
    cold: bool = False,
    rounds: int = ROUNDS,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
    on_rows: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, Any]:
    """Measure works, all engines and forms of one work interleaved.

    Args:
        works: what to measure; those of one `Work.base` are measured together.
        threads: threads of each engine; the process is pinned to as many processors.
        bits: widths of our integer weights, 1 to 8.
        peers: measure the other engines that are installed, too.
        cold: empty the caches before each call (ours only).
        rounds: how many times each is measured.
        command: what was called, for the record.
        say: gets lines about what is left out.
        on_rows: gets the rows of each group of works when they are there.

    Returns:
        {"machine": `machine_record`, "rows": [...], "notes": [...]}; a row has "work", "bits",
        "engine", "us" (median microseconds), "us_low" (10th percentile), "gmacs" (10^9
        multiply-adds a second, of those that are done), "of_peak" (of ``peak_gmacs`` times
        the threads), "peak_gmacs" (median of the int8 probes between this row's rounds), "gbs",
        "macs", "bytes", "copies", "rounds", "disturbed" (rounds that lost the processor every
        time and, with one thread, are given in processor time). Of
        "small op" rows "gmacs", "of_peak" and "gbs" are None.

    Raises:
        ValueError: an argument is wrong.
    """
    wrong = [b for b in bits if not 1 <= b <= 8]
    if wrong or not bits:
        raise ValueError(f"bits: found {list(bits)}; accepted is widths of 1 to 8")
    if rounds < 1:
        raise ValueError(f"rounds: found {rounds}; accepted is at least 1")
    if cold and peers:
        raise ValueError("cold: found with peers; accepted is one of them, since peers run warm")
    rows: list[dict[str, Any]] = []
    with pinned(threads) as cpus:
        machine = machine_record(threads, cpus, command)
        others = Peers(threads) if peers else None
        notes: list[str] = []
        for group in _groups(works):
            contenders = _contenders(group, threads, bits, cold, others, notes)
            probes = interleave(contenders, rounds, _core.int8_peak_gmacs, threads)
            found = [_row(c, probes, threads) for c in contenders]
            if cold:
                found = [{**row, "cold": True} for row in found]
            rows += found
            on_rows(found)
    if rows:
        peaks = [row["peak_gmacs"] for row in rows]
        machine["int8_peak_gmacs"] = round(statistics.median(peaks), 2)
        machine["int8_peak_best_gmacs"] = round(max(peaks), 2)
    if others is not None:
        notes = others.notes + notes
    for line in notes:
        say(line)
    return {"machine": machine, "rows": rows, "notes": notes}


def _groups(works: Iterable[Work]) -> list[list[Work]]:
    groups: dict[str, list[Work]] = {}
    for work in works:
        group = groups.setdefault(work.base, [])
        if all(work.name != other.name for other in group):
            group.append(work)
    return list(groups.values())


def _contenders(
    group: Sequence[Work],
    threads: int,
    bits: Sequence[int],
    cold: bool,
    others: Peers | None,
    notes: list[str],
) -> list[Contender]:
    contenders: list[Contender] = []
    for work in group:
        if work.kind == "small":
            try:
                contenders += small_op_contenders(work)
            except ImportError as error:
                notes.append(f"{work.name}: not measured, it needs torch ({error})")
            continue
        contenders += [native_contender(work, width, threads, cold) for width in bits]
        if others is not None:
            contenders += others.contenders(work)
    return contenders


def _row(contender: Contender, probes: Sequence[float], threads: int) -> dict[str, Any]:
    seconds = contender.median
    ordered = sorted(contender.seconds)
    peak = statistics.median(probes)
    gmacs = contender.macs / seconds * 1e-9
    counted = contender.macs > 0
    return {
        "work": contender.work,
        "bits": contender.bits,
        "engine": contender.engine,
        "us": round(seconds * 1e6, 3),
        "us_low": round(ordered[len(ordered) // 10] * 1e6, 3),
        "gmacs": round(gmacs, 2) if counted else None,
        "of_peak": round(gmacs / (peak * threads), 4) if counted else None,
        "peak_gmacs": round(peak, 2),
        "gbs": round(contender.bytes_moved / seconds * 1e-9, 2) if counted else None,
        "macs": contender.macs,
        "bytes": contender.bytes_moved,
        "copies": contender.copies,
        "rounds": len(contender.seconds),
        "disturbed": contender.disturbed,
    }


def best_peer(rows: Sequence[dict[str, Any]], work: str, bits: int | None = None) -> dict[str, Any]:
    """The fastest row of another engine for this work (of this width), or an empty dict."""
    others = [
        r
        for r in rows
        if r["work"] == work
        and not r["engine"].startswith(OURS)
        and (bits is None or r["bits"] == bits)
    ]
    return min(others, key=lambda r: float(r["us"]), default={})
