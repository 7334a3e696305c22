"""Fair timing on a machine that others use too.

What is to be compared runs in rounds: each round times every contender once, for a millisecond or
a few, in an order that changes from round to round, together with a probe of the processor's peak.
The medians over the rounds are compared, so that a slow moment or a change of the clock frequency
meets all of them alike. A sample during which the system gave the processor to someone else is
taken again; when that does not help and there is only one thread, the last attempt is timed by the
processor time of the process, which leaves out what others used.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

CHUNK_SECONDS = 2e-3
RETRIES = 3


@dataclass
class Contender:
    """One engine doing one work.

    Attributes:
        work: name of the work.
        bits: width of its weights; 32 for float32.
        engine: "defakeq", or another engine and its operator.
        run: does the work for a moment; returns the seconds one operation took, of the process when
            its argument is true and of the clock on the wall otherwise.
        macs: multiply-adds of one operation; 0 when the count means nothing.
        bytes_moved: input, weights and output of one operation.
        copies: how many copies of the weights `run` takes in turn.
        seconds: what `run` returned in each round.
        disturbed: how many of these samples lost the processor in every attempt.
    """

    work: str
    bits: int
    engine: str
    run: Callable[[bool], float]
    macs: int = 0
    bytes_moved: int = 0
    copies: int = 1
    seconds: list[float] = field(default_factory=list)
    disturbed: int = 0

    @property
    def median(self) -> float:
        """Median seconds of one operation."""
        return float(np.median(self.seconds))


def repeated(call: Callable[[], object], operations: int) -> Callable[[bool], float]:
    """A `Contender.run` that times ``call``, which does ``operations`` operations.

    The number of calls is chosen once, at the first run, for `CHUNK_SECONDS`. One more call, which
    is not timed, brings the data into the caches.
    """
    inner = 0

    def run(processor_time: bool) -> float:
        nonlocal inner
        clock = time.process_time if processor_time else time.perf_counter
        if inner == 0:
            call()
            begin = time.perf_counter()
            call()
            spent = max(time.perf_counter() - begin, 1e-8)
            inner = min(max(1, round(CHUNK_SECONDS / spent)), 100_000)
        call()
        begin = clock()
        for _ in range(inner):
            call()
        return (clock() - begin) / (inner * operations)

    return run


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    probe: Callable[[], float],
    threads: int = 1,
    seed: int = 0,
) -> list[float]:
    """Fill in `Contender.seconds`; return what ``probe`` gave in each round.

    A first round, which is not kept, warms everything up. With one of ``threads``, samples that
    are preempted every time are taken in processor time.
    """
    order = random.Random(seed)
    probes = []
    for number in range(rounds + 1):
        turn = list(contenders)
        order.shuffle(turn)
        middle = len(turn) // 2
        values = []
        for index, contender in enumerate(turn):
            if index in (0, middle):
                values.append(probe())
            seconds, disturbed = _sample(contender.run, threads)
            if number > 0:
                contender.seconds.append(seconds)
                contender.disturbed += disturbed
        if number > 0:
            probes.append(float(np.mean(values)))
    return probes


def _preemptions() -> int:
    """How often the system has taken a processor from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _sample(run: Callable[[bool], float], threads: int) -> tuple[float, bool]:
    """One sample, and whether every attempt at it was preempted."""
    for _ in range(RETRIES):
        before = _preemptions()
        value = run(False)
        if _preemptions() == before:
            return value, False
    return (run(True) if threads == 1 else value), True


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Keep the calling thread, and those it starts, on ``threads`` processors.

    Yields their numbers, or None where the system has no such call. The last ones that this process
    may use are taken, since the first serve interrupts.

    Raises:
        ValueError: there are fewer than ``threads``.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    if not 1 <= threads <= len(before):
        raise ValueError(f"threads: found {threads}; accepted here is 1 to {len(before)}")
    chosen = sorted(before)[-threads:]
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)
