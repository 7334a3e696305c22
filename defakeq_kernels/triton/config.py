"""Which tile sizes a product runs with: shipped per architecture, or tuned on request.

``configs/sm_<arch>.json`` are written by ``tools/gpu_configs.py``. A device without a file of its
own uses that of the nearest architecture. Nothing is tuned unless DEFAKEQ_AUTOTUNE=1.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from defakeq_kernels.packed import HALF_BITS
from defakeq_kernels.triton.layout import GpuLayout, units_a_step

FOLDER = Path(__file__).parent / "configs"
GEMV_ROWS = 16
# The fewest steps of the reduction that are worth a part of their own.
_STEPS_A_PART = 4


@dataclass(frozen=True)
class Device:
    """What a launch depends on.

    Attributes:
        arch: compute capability as a number: 87 for 8.7.
        shared: bytes of shared memory that a block can have.
        processors: streaming multiprocessors.
    """

    arch: int
    shared: int
    processors: int


@dataclass(frozen=True)
class Config:
    """Tile of outputs `bn` by rows `bm`, warps a block and stages of the pipeline."""

    bn: int
    bm: int
    warps: int
    stages: int


# Shared memory a block: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability"; processors: of the boards the files are named for in docs/gpu.md.
DEVICES = {
    87: Device(87, 163 << 10, 16),
    89: Device(89, 99 << 10, 128),
    90: Device(90, 227 << 10, 132),
}


@functools.cache
def device_of(index: int) -> Device:
    """The CUDA device `index`.

    Raises:
        RuntimeError: compute capability below 8.0.
    """
    p = torch.cuda.get_device_properties(index)
    if p.major < 8:
        raise RuntimeError(
            f"device: found {p.name} (sm_{p.major}{p.minor}); accepted is sm_80 or newer: run the "
            "layer on the CPU with .to('cpu')"
        )
    shared = getattr(p, "shared_memory_per_block_optin", 99 << 10)
    return Device(10 * p.major + p.minor, shared, p.multi_processor_count)


def nearest(arch: int, found: Iterable[int]) -> int:
    """The architecture whose configurations to use: the newest not above `arch`, or the oldest."""
    known = sorted(found)
    below = [a for a in known if a <= arch]
    return below[-1] if below else known[0]


@functools.cache
def shipped(arch: int) -> dict[str, Config]:
    """The shipped configurations of the nearest architecture, by `key`."""
    files = {int(p.stem.split("_")[1]): p for p in FOLDER.glob("sm_*.json")}
    if not files:
        raise RuntimeError(f"{FOLDER}: found no sm_*.json; accepted is a complete installation")
    entries = json.loads(files[nearest(arch, files)].read_text())["configs"]
    return {name: Config(**value) for name, value in entries.items()}


def key(layout: GpuLayout, x: torch.dtype, m: int) -> str:
    """What configurations are distinguished by: "conv2d int8 m256" and so on."""
    kind = {torch.int8: "int8", torch.float32: "float32"}.get(x, "half")
    rows = 16 if m <= GEMV_ROWS else 64 if m <= 64 else 256
    return f"{layout.kind} {kind} m{rows}"


def all_keys() -> list[str]:
    """Every `key`."""
    kinds = ("int8", "half", "float32")
    return [f"{k} {x} m{m}" for k in ("linear", "conv2d") for x in kinds for m in (16, 64, 256)]


def unit(layout: GpuLayout, x: torch.dtype, device: Device) -> int:
    """Positions of a unit as the product reads it.

    Hopper's integer products wait for each other within a block, so a product should be long: two
    units of 64 bytes, which lie side by side when all codes are bytes, are read as one.
    """
    bytes_only = layout.bits == (8,) and x == torch.int8 and layout.scale_groups == 1
    double = 2 * layout.unit
    pairs = layout.unit == 64 and layout.pitch % double == 0
    return double if 90 <= device.arch < 120 and bytes_only and pairs else layout.unit


def shared_bytes(layout: GpuLayout, x: torch.dtype, config: Config, device: Device) -> int:
    """Shared memory of the product's pipeline: an upper bound over the layer's widths."""
    most = 0
    for bits in layout.bits:
        units = 1 if bits == HALF_BITS else units_a_step(bits)
        step = units * unit(layout, x, device)
        weights = config.bn * (2 * step if bits == HALF_BITS else -(-step * bits // 8))
        most = max(most, weights + config.bm * step * x.itemsize)
    # the store of the result goes through shared memory too
    return max(most * config.stages, 4 * config.bn * config.bm)


def fitted(layout: GpuLayout, x: torch.dtype, config: Config, device: Device) -> Config:
    """`config` with smaller tiles for layers of long steps, and fewer stages until it fits."""
    widest = max(units_a_step(bits) for bits in layout.bits)
    # Registers that the tile leaves: sums of activations and several widths take some, a second
    # sum (scale groups) or the addresses of eight units a step take most.
    each = 4096
    if layout.asymmetric or layout.half_inputs or len(layout.bits) > 1:
        each = 2048
    if layout.scale_groups > 1 or widest == 8:
        each = 1024
    # Hopper's products need 64 rows.
    while config.bn * config.bm > each * config.warps:
        if config.bn > 64:
            config = replace(config, bn=config.bn // 2)
        else:
            config = replace(config, bm=config.bm // 2)
    while shared_bytes(layout, x, config, device) > device.shared:
        if config.stages > 2:
            config = replace(config, stages=config.stages - 1)
        elif config.bm > 16:
            config = replace(config, bm=config.bm // 2)
        elif config.bn > 16:
            config = replace(config, bn=config.bn // 2)
        else:
            raise RuntimeError(
                f"device: found {device.shared} bytes of shared memory a block; accepted is at "
                f"least {shared_bytes(layout, x, config, device)}"
            )
    return config


def spread(layout: GpuLayout, m: int, config: Config, device: Device) -> Config:
    """`config` with smaller tiles while there are fewer than processors."""
    while -(-layout.stored // config.bn) * -(-m // config.bm) < device.processors:
        if config.bm > 32 and config.bm >= config.bn // 2:
            config = replace(config, bm=config.bm // 2)
        elif config.bn > 64:
            config = replace(config, bn=config.bn // 2)
        else:
            # A block that is alone on its processor hides latency by loading further ahead.
            if m > 64:
                config = replace(config, stages=max(config.stages, 5))
            break
    return replace(config, warps=4) if config.bn * config.bm <= 64 * 64 else config


@dataclass(frozen=True)
class Gemv:
    """Tile of outputs `bn` by rows `bm`, `slices` warps along the reduction, pipeline stages."""

    bn: int
    bm: int
    slices: int
    stages: int


def gemv(layout: GpuLayout, x: torch.dtype, m: int, device: Device) -> Gemv | None:
    """How the kernel of few rows runs a product; None: it does not.

    A block reads all of x, so its outputs grow with the rows as long as every processor has some.
    """
    bits = layout.bits[0]
    plain = (
        m <= GEMV_ROWS
        and len(layout.runs) == 1
        and bits != HALF_BITS
        and not layout.half_inputs
        and x in (torch.int8, torch.float16, torch.bfloat16)
    )
    grouped = layout.scale_groups > 1
    if not plain or (grouped and (x == torch.int8 or layout.span > units_a_step(bits))):
        return None
    steps = -(-layout.units // units_a_step(bits))
    if not grouped and m > 1 and steps < 2:
        return None
    bn = 16
    # In large layers 32 outputs share what a step costs beside expanding codes: a fifth of it.
    most = max(32 if layout.stored >= 2048 else 16, 8 * m)
    while bn < min(most, 128) and 10 * -(-layout.stored // (2 * bn)) >= 9 * device.processors:
        bn *= 2
    # int8 tensor cores take 16 columns at the least
    bm = 8 if m <= 8 and x != torch.int8 else 16
    step = units_a_step(bits) * layout.unit
    a_slice = bn * -(-step * bits // 8) + bm * step * x.itemsize + 8 * bn
    # A second block on a processor works while the first waits.
    blocks = 2 if -(-layout.stored // bn) > device.processors else 1
    for resident in (blocks, 1):
        left = (device.shared + 1024) // resident - 2048
        for slices, stages in ((8, 4), (8, 3), (4, 4), (4, 3), (4, 2), (2, 2)):
            # the sums of the slices go through shared memory too
            fits = max(stages * a_slice, 4 * bn * bm) * slices <= left
            short = slices > 2 and slices >= 2 * steps
            if fits and not short and slices * bn <= 512:
                return Gemv(bn, bm, slices, stages)
    return None


def parts(layout: GpuLayout, x: torch.dtype, m: int, config: Config, device: Device) -> int:
    """Into how many parts the reduction is split: more only while processors would idle.

    Integer layers with scale groups and layers with half-precision inputs are not split, since
    their sums have an order.
    """
    ordered = layout.half_inputs > 0 or (layout.scale_groups > 1 and x == torch.int8)
    if ordered or m > 64:
        return 1
    tiles = -(-layout.stored // config.bn) * -(-m // config.bm)
    steps = min(-(-layout.units // (1 if b == HALF_BITS else units_a_step(b))) for b in layout.bits)
    count = 1
    while (
        tiles * count < 2 * device.processors
        and steps >= 2 * count * _STEPS_A_PART
        and 2 * count * m * layout.stored < 1 << 31
    ):
        count *= 2
    return count


def candidates(layout: GpuLayout, x: torch.dtype, m: int, device: Device) -> list[Config]:
    """What tuning tries."""
    rows = (16,) if m <= 16 else (16, 32, 64) if m <= 64 else (32, 64, 128)
    tried = [
        Config(bn, bm, warps, stages)
        for bn in (32, 64, 128)
        for bm in rows
        for warps in (4, 8)
        for stages in (2, 3, 4)
        if warps == 4 or bn * bm >= 64 * 64
    ]
    return [c for c in tried if shared_bytes(layout, x, c, device) <= device.shared]


def tuned_file(device: Device) -> Path:
    """Where tuned configurations are kept: $DEFAKEQ_CACHE, or the user's cache folder."""
    base = os.environ.get("DEFAKEQ_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "defakeq"
    )
    return Path(base) / f"tuned_sm_{device.arch}.json"


def _tuned_key(layout: GpuLayout, x: torch.dtype, m: int) -> str:
    rows = 1 << max(m - 1, 0).bit_length()
    widths = ",".join(str(b) for b in layout.bits)
    shape = f"{layout.stored}x{layout.units * layout.unit}"
    return f"{key(layout, x, m)} {shape} bits {widths} rows {rows}"


_TUNED: dict[Path, dict[str, Config]] = {}


def _tuned(path: Path) -> dict[str, Config]:
    if path not in _TUNED:
        found = json.loads(path.read_text()) if path.exists() else {}
        _TUNED[path] = {name: Config(**value) for name, value in found.items()}
    return _TUNED[path]


def choose(
    layout: GpuLayout,
    x: torch.dtype,
    m: int,
    device: Device,
    measure: Callable[[Config], float] | None = None,
) -> Config:
    """The configuration of a product of `m` rows.

    Args:
        measure: seconds of a run, infinite where the device cannot run it; with
            DEFAKEQ_AUTOTUNE=1 all `candidates` are measured once a shape and the best is kept in
            `tuned_file`.
    """
    path = tuned_file(device)
    name = _tuned_key(layout, x, m)
    known = _tuned(path)
    if name not in known and measure is not None and os.environ.get("DEFAKEQ_AUTOTUNE") == "1":
        timed = [(measure(c), i, c) for i, c in enumerate(candidates(layout, x, m, device))]
        known[name] = min(timed)[2]
        _save(path, {k: asdict(c) for k, c in known.items()})
    if name in known:
        return fitted(layout, x, known[name], device)
    chosen = spread(layout, m, shipped(device.arch)[key(layout, x, m)], device)
    return fitted(layout, x, chosen, device)


def _save(path: Path, entries: dict[str, dict[str, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(entries, file, indent=1, sort_keys=True)
    os.replace(temporary, path)
