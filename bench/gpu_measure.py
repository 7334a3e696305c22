"""How bench/gpu.py measures, and what stands for measuring without a GPU (DRY)."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import signal
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

DRY = "--dry-run" in sys.argv[1:]
DEVICE = "cpu" if DRY else "cuda"
Call = Callable[[], Any]
COMPILED = "torch.compile fp16"


def replayed(calls: Sequence[Call], repeats: int) -> float:
    """Median seconds of one call; dry, of none."""
    if DRY:
        with torch.no_grad():
            calls[-1]()
        return 1.0
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        kept = [call() for call in calls]
    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    del kept
    return statistics.median(times[3:])


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no result within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Rows:
    """Results, and how they compare with the bars."""

    def __init__(self, repeats: int, limit: int, warm: bool, path: Path) -> None:
        self.repeats, self.limit, self.warm, self.path = repeats, limit, warm, path
        self.rows: list[dict[str, Any]] = []
        self.bars: list[dict[str, Any]] = []

    def keep(self) -> None:
        """Writes what there is: a process that is stopped loses nothing."""
        write(self.path, {"rows": self.rows, "bars": self.bars})

    def measure(self, work: str, engine: str, make: Callable[[], Sequence[Call]]) -> float | None:
        """Median seconds of a call; None when it failed or took too long to make."""
        own = engine == "defakeq"
        if self.warm:
            self.prepare(engine, make)
            return None
        seconds: float | None = None
        reason = None
        try:
            with at_most(4 * self.limit if own else self.limit):
                calls = make()
                seconds = replayed(calls, self.repeats)
        except Exception as error:  # a peer may fail in any way; the reason is kept
            reason = f"{type(error).__name__}: {error}"[:200]
            if own:
                traceback.print_exc()
        if not DRY:
            torch.cuda.empty_cache()
        self.rows.append({"work": work, "engine": engine, "seconds": seconds, "reason": reason})
        self.keep()
        text = f"{seconds * 1e6:10.1f} us" if seconds else f"not measured ({reason})"
        text = "made and called" if DRY and seconds else text
        print(f"{work:44} {engine:18} {text}", flush=True)
        return seconds

    def prepare(self, engine: str, make: Callable[[], Sequence[Call]]) -> None:
        """Fills the compilers' caches; what fails is told where it is measured."""
        if engine not in ("defakeq", COMPILED):
            return
        try:
            with at_most(2 * self.limit), torch.no_grad():
                make()[0]()
        except Exception as error:
            print(f"{engine}: {type(error).__name__}: {error}"[:200], file=sys.stderr)

    def bar(self, name: str, value: float | None, wanted: float, at_least: bool = True) -> None:
        if self.warm or DRY:
            return
        met = value is not None and (value >= wanted if at_least else value <= wanted)
        self.bars.append({"bar": name, "value": value, "wanted": wanted, "met": met})
        self.keep()
        sign = ">=" if at_least else "<="
        shown = "not measured" if value is None else f"{value:.3f}"
        state = "met" if met else "MISSED" if value is not None else "absent"
        print(f"{state:8} {name}: {shown} ({sign} {wanted})", flush=True)


def sets_of(weight_bytes: int) -> int:
    """How many weights do not fit the second-level cache together."""
    if DRY:
        return 2
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(4, min(64, math.ceil(2 * cache / weight_bytes)))


def over(slower: float | None, faster: float | None) -> float | None:
    """How many times as fast."""
    return None if slower is None or faster is None else slower / faster


def recorded(run: Callable[[], Any]) -> Any:
    """What `run` returns while its launches, of which there must be some, are only recorded."""
    from defakeq_kernels.triton import config
    from defakeq_kernels.triton.start import Launch, recording

    found: list[Launch] = []
    with recording(found.append, config.DEVICES[90]):
        made = run()
    if not found:
        raise RuntimeError("found no launch; accepted is one or more")
    return made


def placed(layer: Any) -> Callable[[Any], Any]:
    """The layer on the device."""
    if not DRY:
        return layer.cuda()  # type: ignore[no-any-return]
    from defakeq_kernels.triton import launch
    from defakeq_kernels.triton.pack import pack

    packed, made = pack(layer.packed_weight(), layer.act, layer.activation, layer.out)
    int8 = layer.out is not None
    if layer.kind == "linear":
        return lambda x: recorded(lambda: launch.linear(x, packed, layer.out_features, int8))
    window = (made.kernel, made.stride, made.padding, made.dilation)
    return lambda x: recorded(lambda: launch.conv2d(x, packed, layer.out_channels, *window, int8))


def copy_bandwidth() -> float:
    """Bytes a second that a copy reads and writes."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * a.numel() / replayed([lambda: b.copy_(a)], 20)


def machine() -> dict[str, Any]:
    p = torch.cuda.get_device_properties(0)
    found = {"device": p.name, "arch": f"sm_{p.major}{p.minor}", "cuda": torch.version.cuda}
    for package in ("torch", "triton", "gemlite", "torchao", "defakeq"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, path)
