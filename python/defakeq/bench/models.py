"""Whole networks in several engines: milliseconds, sizes, memory and the first inference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from defakeq.bench.engines import ENGINES, INSTALL, Defakeq, Engine
from defakeq.bench.machine import machine_record
from defakeq.bench.timing import Contender, interleave, pinned, repeated

FIELDS = ("network", "plan", "engine", "threads", "ms", "size_mb", "rss_mb", "first_ms", "gmacs")


def cache_folder(cache: Path | None = None) -> Path:
    """Where artefacts are kept: `cache`, or the user's cache folder."""
    if cache is not None:
        return cache
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "defakeq"


def artefact_folder(network: str, engine: Engine, cache: Path) -> Path:
    """The folder of one engine's artefact: it is made anew when the engine's version changes."""
    versions = []
    for module in engine.modules:
        try:
            versions.append(metadata.version(module))
        except metadata.PackageNotFoundError:
            versions.append("none")
    return cache / network / f"{engine.name}-{'-'.join(versions)}"


def multiply_adds(network: str) -> int:
    """Multiply-adds of the convolutions and linear layers for one image."""
    import torch
    from torch import Tensor, nn

    from defakeq import networks

    model = networks.build(network)
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
        model(torch.zeros(1, *model.input_size))  # type: ignore[misc]
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
        found.append(Defakeq(plan) if name == "defakeq" else ENGINES[name]())
    return found


def prepare(network: str, engine: Engine, cache: Path) -> Path:
    """The folder with the engine's artefact, which is made when it is not there."""
    folder = artefact_folder(network, engine, cache)
    missing = engine.missing(folder)
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed ({INSTALL})")
    if not engine.ready(folder):
        folder.mkdir(parents=True, exist_ok=True)
        engine.prepare(network, folder)
    return folder


def measure(
    network: str,
    *,
    engines: Sequence[str] = ("defakeq", "torch", "torch-int8", "onnxruntime", "openvino"),
    plan: str = "8",
    threads: int = 1,
    rounds: int = 15,
    cache: Path | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run one network in turn in each engine, round by round.

    Args:
        network: a name in `defakeq.networks`.
        engines: names in `ENGINES`. One that is not installed or fails is left out, with a note.
        plan: of our program: "8", "4", "half" or the path of a plan's JSON.
        threads: of each engine; as many processors are pinned.
        rounds: samples of each engine.
        cache: folder of the artefacts; None: the user's cache folder.
        command: what was called, for the record.
        say: gets lines about the progress.

    Returns:
        {"machine": ..., "rows": [...], "notes": [...]}. A row has `FIELDS`: "ms" is the median,
        "rss_mb" the resident memory of a fresh process after its first inference and "first_ms"
        the time in it from opening the file to the first result (10^6 bytes a MB).

    Raises:
        ValueError: an unknown network or engine, or a wrong number.
    """
    from defakeq import networks

    if network not in networks.NAMES:
        raise ValueError(
            f"network: found {network!r}; accepted is one of {', '.join(networks.NAMES)}"
        )
    if rounds < 1:
        raise ValueError(f"rounds: found {rounds}; accepted is 1 or more")
    chosen = engines_of(engines, plan)
    macs = multiply_adds(network)
    size = networks.build(network).input_size[1]  # type: ignore[index]
    x = networks.images(1, int(size), seed=2).numpy()
    folder_of, notes, fresh, contenders = cache_folder(cache), [], {}, []
    with pinned(threads) as cpus:
        machine = machine_record(threads, cpus, command)
        for engine in chosen:
            say(f"{network}: {engine.name}")
            try:
                folder = prepare(network, engine, folder_of)
                alone = _in_fresh_process(engine, folder, threads, x.shape)
                call = engine.load(folder, threads)
                if not np.isfinite(np.asarray(call(x))).all():
                    raise RuntimeError("output: found infinite or NaN; accepted is finite numbers")
            except Exception as error:
                line = " ".join(str(error).split())[:300]
                notes.append(f"{engine.name}: not compared: {type(error).__name__}: {line}")
                say(notes[-1])
                continue
            fresh[engine.name] = (alone, engine.size(folder), engine.bits)
            run = repeated(lambda call=call: call(x), 1)  # type: ignore[misc]
            contenders.append(Contender(network, engine.bits, engine.name, run, macs))
        if contenders:
            interleave(contenders, rounds, lambda: 0.0, threads)
    rows = []
    for contender in contenders:
        alone, bytes_on_disk, bits = fresh[contender.engine]
        seconds = contender.median
        rows.append(
            {
                "network": network,
                "plan": plan if contender.engine == "defakeq" else str(bits),
                "engine": contender.engine,
                "threads": threads,
                "ms": round(seconds * 1e3, 4),
                "size_mb": round(bytes_on_disk / 1e6, 3),
                "rss_mb": round(alone["rss_mb"], 1),
                "first_ms": round(alone["first_ms"], 2),
                "gmacs": round(macs / seconds / 1e9, 2),
            }
        )
    return {"machine": machine, "rows": rows, "notes": notes}


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
