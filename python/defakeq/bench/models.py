"""Whole networks in several engines: milliseconds, sizes, memory and the first inference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.bench.engine import (
    INSTALL,
    Engine,
    Network,
    network_named,
    network_names,
    runtime,
)
from defakeq.bench.engines import ENGINES, prepared
from defakeq.bench.machine import machine_record
from defakeq.bench.timing import Contender, interleave, pinned, repeated

FIELDS = ("network", "plan", "engine", "threads", "ms", "size_mb", "rss_mb", "first_ms", "gmacs")


def cache_folder(cache: Path | None = None) -> Path:
    """Where artefacts are kept: `cache`, or the user's cache folder."""
    if cache is not None:
        return cache
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "defakeq"


def network_of(text: str, cache: Path | None = None) -> Network:
    """A network or detector by its name, or the path of a ``.dfq`` file.

    Raises:
        ValueError: neither.
    """
    path = Path(text)
    if path.suffix == ".dfq":
        if not path.is_file():
            raise ValueError(f"network: found {text!r}, no such file; accepted is a .dfq file")
        return Network(path.stem, cache_folder(cache), path)
    if text not in network_names():
        accepted = ", ".join(network_names())
        raise ValueError(f"network: found {text!r}; accepted is a .dfq file or one of {accepted}")
    return Network(text, cache_folder(cache))


def multiply_adds(network: Network) -> int:
    """Multiply-adds of the convolutions and linear layers for one image, pruned ones included.

    Of a file: those that its program does.
    """
    if network.program is not None:
        return int(runtime().load(network.program, threads=1).info["macs"])
    import torch
    from torch import Tensor, nn

    model = network_named(network.name)
    total = 0

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *model.input_size))
    return total


def engines_of(names: Sequence[str], plan: str) -> list[Engine]:
    """The engines by name.

    Raises:
        ValueError: an unknown name.
    """
    found: list[Engine] = []
    for name in names:
        if name not in ENGINES:
            raise ValueError(f"engines: found {name!r}; accepted is any of {', '.join(ENGINES)}")
        kind = ENGINES[name]
        found.append(kind(plan) if kind.planned else kind())  # type: ignore[call-arg]
    return found


def measure(
    network: str,
    *,
    engines: Sequence[str] = ("defakeq", "torch", "torch-int8", "onnxruntime", "openvino"),
    plan: str = "8",
    threads: int = 1,
    rounds: int = 15,
    profile: bool = False,
    cache: Path | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run one network in turn in each engine, round by round.

    Args:
        network: a network or detector by its name, or the path of a ``.dfq`` file, which "defakeq"
            and the "...-export" engines run.
        engines: names in `ENGINES`. One that is not installed or fails is left out, with a note.
        plan: of our program, and of its exports to other engines: "8", "4", "half" or the path of
            a plan's JSON. A file has its own.
        threads: of each engine; as many processors are pinned.
        rounds: samples of each engine.
        profile: time the nodes of our program too.
        cache: folder of the artefacts; None: the user's cache folder.
        command: what was called, for the record.
        say: gets lines about the progress.

    Returns:
        {"machine": ..., "rows": [...]}. A row has `FIELDS`: "ms" is the median, "rss_mb" the
        resident memory of a fresh process after its first inference, "first_ms" the time in it
        from opening the file to the first result (10^6 bytes a MB) and "gmacs" the whole
        network's `multiply_adds` over "ms". "notes": what was left out and why, if anything was.
        "profile", when asked for: a list of {"network", "node", "op", "kernel", "shape", "us",
        "gmacs", "weight_bytes"}.

    Raises:
        ValueError: an unknown network or engine, or a wrong number.
    """
    source = network_of(network, cache)
    if rounds < 1:
        raise ValueError(f"rounds: found {rounds}; accepted is 1 or more")
    chosen = engines_of(engines, plan)
    macs, x = multiply_adds(source), image_of(source)
    notes: list[str] = []
    nodes: list[dict[str, Any]] = []
    fresh, contenders = {}, []
    with pinned(threads) as cpus:
        machine = machine_record(threads, cpus, command)
        for engine in chosen:
            say(f"{source.name}: {engine.name}")
            try:
                folder = prepared(source, engine)
                alone = _in_fresh_process(engine, folder, threads, x.shape)
                call = engine.load(folder, threads)
                if not np.isfinite(np.asarray(call(x))).all():
                    raise RuntimeError("output: found infinite or NaN; accepted is finite numbers")
                if profile and engine.name == "defakeq":
                    nodes = profiled(source.name, call, x)
            except Exception as error:
                line = " ".join(str(error).split())[:300]
                notes.append(f"{engine.name}: not compared: {type(error).__name__}: {line}")
                say(notes[-1])
                continue
            fresh[engine.name] = (alone, engine.size(folder), engine)
            run = repeated(lambda call=call: call(x), 1)  # type: ignore[misc]
            contenders.append(Contender(source.name, engine.bits, engine.name, run, macs))
        if contenders:
            interleave(contenders, rounds, lambda: 0.0, threads)
    rows = []
    for contender in contenders:
        alone, bytes_on_disk, engine = fresh[contender.engine]
        seconds = contender.median
        own = engine.files and source.program is not None
        rows.append(
            {
                "network": source.name,
                "plan": "file" if own else engine.plan,
                "engine": contender.engine,
                "threads": threads,
                "ms": round(seconds * 1e3, 4),
                "size_mb": round(bytes_on_disk / 1e6, 3),
                "rss_mb": round(alone["rss_mb"], 1),
                "first_ms": round(alone["first_ms"], 2),
                "gmacs": round(macs / seconds / 1e9, 2),
            }
        )
    result: dict[str, Any] = {"machine": machine, "rows": rows}
    if notes:
        result["notes"] = notes
    if profile:
        result["profile"] = nodes
    return result


def image_of(network: Network) -> NDArray[np.float32]:
    """The image that every engine is measured with, float32 (1, 3, h, w)."""
    if network.program is not None:
        rng = np.random.default_rng(2)
        return rng.standard_normal(network.shape()).astype(np.float32)
    from defakeq import networks

    image: NDArray[np.float32] = networks.images(1, network.shape()[2], seed=2).numpy()
    return image


def profiled(network: str, program: Any, x: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The nodes of a loaded program with their median times."""
    return [
        {
            "network": network,
            "node": node["name"],
            "op": node["op"],
            "kernel": node["kernel"],
            "shape": list(node["shape"]),
            "us": round(node["seconds"] * 1e6, 2),
            "gmacs": round(node["macs"] / max(node["seconds"], 1e-9) / 1e9, 2),
            "weight_bytes": node["weight_bytes"],
        }
        for node in program.profile(x, repeat=15)
    ]


def _in_fresh_process(
    engine: Engine, folder: Path, threads: int, shape: tuple[int, ...]
) -> dict[str, float]:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    done = subprocess.run(
        [
            sys.executable, "-m", "defakeq.bench.engines", engine.name, engine.file, str(folder),
            str(threads), ",".join(map(str, shape)),
        ],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended"])[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar chart of the milliseconds, as PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"chart: matplotlib is not installed ({INSTALL})") from None
    labels = [f"{r['network']}\n{r['engine']} {r['plan']}" for r in rows]
    figure = Figure(figsize=(7, 1 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = ["#c44e52" if r["engine"] == "defakeq" else "#8c8c8c" for r in rows]
    bars = axes.barh(labels, [r["ms"] for r in rows], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("ms an image (median)")
    figure.savefig(path, format="png", dpi=150)
