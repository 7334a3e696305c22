"""The GPU kernels beside other libraries, on the machine at hand.

    python bench/gpu.py [--json FILE] [--only gemv,conv,resnet34] [--quick] [--seconds 450]
    python bench/gpu.py --dry-run     without a GPU: makes everything small on the CPU, calls the
                                      peers and records our launches instead of running them

Times are medians of CUDA graph replays by CUDA events; a graph holds several calls on different
inputs and weights, together larger than the second-level cache. Each part runs in a process of its
own: first all at once, which only compiles, then one after the other. What is not installed, fails
or takes too long is listed with the reason. Results with device and versions go to FILE after each
part, by default bench/results/gpu-<device>.json. Exit code 1: a bar is missed or not measured; 2:
no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_measure import (
    COMPILED,
    DEVICE,
    DRY,
    Call,
    Rows,
    copy_bandwidth,
    machine,
    over,
    placed,
    recorded,
    sets_of,
    write,
)
from torch import nn

from defakeq import QuantPlan, convert, load, networks, save
from defakeq.prunable import half_plan
from defakeq_kernels import dfq
from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear

STATIC = ActQuant.static(-3, 3)
# 3x3 and 1x1 convolutions of the detectors: channels in, channels out, kernel, image side.
CONVS = (
    (64, 64, 3, 64), (128, 128, 3, 32), (256, 256, 3, 16), (512, 512, 3, 8),
    (728, 728, 1, 16), (160, 960, 1, 24), (272, 1632, 1, 12),
)  # fmt: skip
DETECTORS = ("resnet34", "efficientnet_b4", "xception", "swin_base")


def large(n: int, k: int, **options: Any) -> QuantLinear:
    """A layer whose outputs repeat 64 different ones: quantizing is slow, values do not matter."""
    some = QuantLinear.from_float(nn.Linear(k, 64), **options)
    weight = some.packed_weight()

    def repeated(t: Any) -> Any:
        return None if t is None else np.tile(t, (n // 64, *([1] * (t.ndim - 1))))

    segment = weight.segments[0]
    segment = replace(
        segment,
        codes=repeated(segment.codes),
        scale=repeated(segment.scale),
        zero_point=repeated(segment.zero_point),
        out_index=np.arange(n, dtype=np.int32),
    )
    weight = replace(weight, shape=(n, k), segments=(segment,), bias=repeated(weight.bias))
    return QuantLinear(weight, act=some.act)


def linears(layer: QuantLinear, count: int) -> list[Callable[[Any], Any]]:
    """One layer on the device, `count` times in its memory."""
    if DRY:
        return [placed(layer)] * count
    layer = layer.cuda()
    n = layer.out_features
    copies = [layer.packed, *(layer.packed.clone() for _ in range(count - 1))]
    return [lambda x, p=p: torch.ops.defakeq.linear(x, p, n, False) for p in copies]


def gemv(rows: Rows, quick: bool) -> None:
    bandwidth = 1.0 if rows.warm or DRY else copy_bandwidth()
    times: dict[tuple[int, int], float | None] = {}
    batches = (1,) if quick else (1, 16, 4, 2, 8)
    # the largest layers and fewest rows first: time may run out
    sizes = ((1024, 3.0), (512, 2.0)) if DRY else ((16384, 3.0), (4096, 2.0))
    for size, bar in sizes:
        layer = large(size, size, bits=4, group_size=128)
        count = sets_of(size * size // 2)
        for m in batches:
            work = f"w4a16 {m}x{size}x{size}"
            xs = [torch.randn(m, size, device=DEVICE).half() for _ in range(count)]

            def ours(count: int = count, layer: Any = layer, xs: Any = xs) -> list[Call]:
                layers = linears(layer, count)
                return [lambda q=q, x=x: q(x) for q, x in zip(layers, xs, strict=True)]

            def dense(size: int = size, m: int = m) -> list[Call]:
                few = sets_of(2 * size * size)
                made = [nn.Linear(size, size, device=DEVICE).half() for _ in range(few)]
                x = torch.randn(m, size, device=DEVICE).half()
                return [lambda d=d: d(x) for d in made]

            t = times[size, m] = rows.measure(work, "defakeq", ours)
            rows.bar(
                f"{work} over torch fp16", over(rows.measure(work, "torch fp16", dense), t), bar
            )
            if size == sizes[0][0] and t is not None:
                # codes, and a scale and a zero point for 128 of them
                read = size * size / 2 + size * size / 128 * 8
                rows.bar(f"{work} of copy bandwidth", read / t / bandwidth, 0.75)
    for size, _ in sizes:
        for m in batches:
            four_bit_peers(rows, m, size, times[size, m])


def four_bit_peers(rows: Rows, m: int, size: int, ours: float | None) -> None:
    """gemlite, which tunes itself at the first call, and torchao."""
    work, count = f"w4a16 {m}x{size}x{size}", sets_of(size * size // 2)

    def gemlite() -> list[Call]:
        from gemlite.core import DType, GemLiteLinear

        calls = []
        for _ in range(count):
            made = GemLiteLinear(4, 128, size, size, DType.FP16, DType.FP16)
            codes = torch.randint(0, 16, (size, size), dtype=torch.uint8, device=DEVICE)
            scale = torch.rand((size * size // 128, 1), device=DEVICE).half()
            made.pack(codes, scale, torch.full_like(scale, 8), None)
            x = torch.randn(m, size, device=DEVICE).half()
            calls.append(lambda made=made, x=x: made(x))
        return calls

    def torchao() -> list[Call]:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        made = [nn.Linear(size, size, device=DEVICE).bfloat16() for _ in range(count)]
        for layer in made:
            quantize_(layer, Int4WeightOnlyConfig(128, int4_packing_format="tile_packed_to_4d"))
        x = torch.randn(m, size, device=DEVICE).bfloat16()
        return [lambda d=d: d(x) for d in made]

    rows.bar(f"{work} over gemlite", over(rows.measure(work, "gemlite", gemlite), ours), 1.1)
    rows.measure(work, "torchao int4", torchao)


def matmul(rows: Rows, quick: bool) -> None:
    batches = (512,) if quick else (512, 8192, 2048)
    for size in (1024,) if DRY else (4096, 1024):
        for m in batches:
            x = torch.randint(-128, 128, (m, size), dtype=torch.int8, device=DEVICE)

            def dense(m: int = m, size: int = size) -> list[Call]:
                made = [nn.Linear(size, size, device=DEVICE).half() for _ in range(4)]
                h = torch.randn(m, size, device=DEVICE).half()
                return [lambda d=d: d(h) for d in made]

            def int_mm(x: Any = x, size: int = size) -> list[Call]:
                w = torch.randint(-128, 128, (size, size), dtype=torch.int8, device=DEVICE)
                return [lambda: torch._int_mm(x, w.t())] * 4

            shape = f"{m}x{size}x{size}"
            fp16 = rows.measure(shape, "torch fp16", dense)
            whole = rows.measure(shape, "torch _int_mm", int_mm)
            for bits in (8, 4):

                def ours(bits: int = bits, size: int = size, x: Any = x) -> list[Call]:
                    layer = large(size, size, bits=bits, symmetric=True, act=STATIC)
                    return [lambda q=q: q(x) for q in linears(layer, 4)]

                t = rows.measure(f"w{bits}a8 {shape}", "defakeq", ours)
                rows.bar(f"w{bits}a8 {shape} over torch fp16", over(fp16, t), 1.4)
                rows.bar(f"w{bits}a8 {shape} over _int_mm", over(whole, t), 1.0)
    for m in batches:
        size = 1024 if DRY else 4096

        def torchao(m: int = m, size: int = size) -> list[Call]:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            made = nn.Linear(size, size, device=DEVICE).bfloat16()
            quantize_(made, Int8DynamicActivationInt8WeightConfig())
            h = torch.randn(m, size, device=DEVICE).bfloat16()
            fast = made if DRY else torch.compile(made)
            return [lambda: fast(h)]

        rows.measure(f"{m}x{size}x{size}", "torchao int8", torchao)


def convolutions(rows: Rows, quick: bool) -> None:
    ratios: list[float | None] = []
    for batch in (1,) if quick else (1, 8, 32):
        for c, d, k, side in CONVS:
            work = f"conv {k}x{k} {c}-{d}@{side} batch {batch}"
            shape = (batch, c, side, side)

            def dense(c: int = c, d: int = d, k: int = k, shape: Any = shape) -> list[Call]:
                made = [nn.Conv2d(c, d, k, padding=k // 2, device=DEVICE).half() for _ in range(8)]
                made = [m.to(memory_format=torch.channels_last) for m in made]
                x = torch.randn(shape, device=DEVICE).half()
                x = x.to(memory_format=torch.channels_last)
                return [lambda m=m: m(x) for m in made]

            def ours(c: int = c, d: int = d, k: int = k, shape: Any = shape) -> list[Call]:
                conv = nn.Conv2d(c, d, k, padding=k // 2)
                weight = QuantConv2d.from_float(conv, bits=4, symmetric=True).packed_weight()
                made = [placed(QuantConv2d(weight, STATIC, "relu", STATIC)) for _ in range(8)]
                x = torch.randint(-128, 128, shape, dtype=torch.int8, device=DEVICE)
                x = x.to(memory_format=torch.channels_last)
                return [lambda m=m: m(x) for m in made]

            torch.backends.cudnn.benchmark = True
            fp16 = rows.measure(work, "cuDNN fp16", dense)
            ratios.append(over(fp16, rows.measure(work, "defakeq", ours)))
    known = [r for r in ratios if r is not None]
    mean = statistics.geometric_mean(known) if len(known) == len(ratios) else None
    rows.bar("int8 convolutions over cuDNN fp16, geometric mean", mean, 1.3)


def detector(rows: Rows, quick: bool, name: str, folder: Path) -> None:
    model = networks.build(name)
    side = model.input_size[-1]
    plans = {"4": 1.5, "half": 2.0}
    programs = {plan: program_of(model, name, plan, folder) for plan in plans}
    for batch in (1,) if quick else (1, 32):
        x = networks.images(batch, side).to(DEVICE)
        work = f"{name} batch {batch}"
        times = {
            plan: rows.measure(f"{work} plan {plan}", "defakeq", lambda p=p, x=x: [lambda: p(x)])
            for plan, p in programs.items()
        }

        def half(x: Any = x) -> tuple[Any, Any]:
            made = networks.build(name).half().to(DEVICE).to(memory_format=torch.channels_last)
            return made, x.half().to(memory_format=torch.channels_last)

        def eager(half: Any = half) -> list[Call]:
            made, h = half()
            return [lambda: made(h)]

        def compiled(half: Any = half) -> list[Call]:
            made, h = half()
            fast = made if DRY else torch.compile(made, mode="max-autotune-no-cudagraphs")
            return [lambda: fast(h)]

        rows.measure(work, "torch fp16", eager)
        other = rows.measure(work, COMPILED, compiled)
        for plan, bar in plans.items():
            rows.bar(f"{work} plan {plan} over torch.compile", over(other, times[plan]), bar)


def program_of(model: Any, name: str, plan: str, folder: Path) -> Callable[[Any], Any]:
    """The program of a plan on the device."""
    path = converted(model, name, plan, folder)
    if not DRY:
        return load(path).cuda()  # type: ignore[no-any-return]
    from defakeq_kernels.triton.program import GpuProgram

    program = GpuProgram(*dfq.loads(path.read_bytes()), torch.device("cpu"))
    return lambda x: recorded(lambda: program([x]))


def converted(model: Any, name: str, plan: str, folder: Path) -> Path:
    """The file of a plan's program, in `folder`, where it is kept."""
    path = folder / f"{name}-{plan}.dfq"
    if not path.exists():
        side = model.input_size[-1]
        example, samples = networks.images(1, side), networks.images(2, side)
        made = QuantPlan.uniform(model, 4, act_bits=8) if plan == "4" else half_plan(model, example)
        temporary = path.with_suffix(f".{os.getpid()}.dfq")
        save(convert(model, example, made, samples, backend="program"), temporary)
        os.replace(temporary, path)
    return path


def pruned(rows: Rows, quick: bool) -> None:
    """Half the outputs and half the inputs gone, at sizes that computing limits."""
    if DRY:
        compare(rows, "64x512x512", lambda: nn.Linear(512, 512), (64, 512))
        compare(rows, "conv 3x3 64@8", lambda: nn.Conv2d(64, 64, 3, padding=1), (2, 64, 8, 8))
        return
    for size in (4096,) if quick else (2048, 4096, 8192):
        compare(rows, f"8192x{size}x{size}", lambda size=size: nn.Linear(size, size), (8192, size))
    for c, side in ((256, 64), (512, 32)):
        compare(
            rows,
            f"conv 3x3 {c}@{side} batch 32",
            lambda c=c: nn.Conv2d(c, c, 3, padding=1),
            (32, c, side, side),
        )


def compare(rows: Rows, work: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    half = torch.arange(0, shape[1], 2)
    x = torch.randint(-128, 128, shape, dtype=torch.int8, device=DEVICE)
    x = x.to(memory_format=torch.channels_last) if len(shape) == 4 else x
    times = []
    for text, kept in (("dense", {}), ("half in and out", {"keep_in": half, "keep_out": half})):

        def ours(kept: Any = kept) -> list[Call]:
            kind: Any = QuantLinear if len(shape) == 2 else QuantConv2d
            layer = placed(kind.from_float(make(), bits=8, symmetric=True, act=STATIC, **kept))
            return [lambda: layer(x)] * 2

        times.append(rows.measure(f"{work} {text}", "defakeq", ours))
    dense, few = times
    rows.bar(f"{work} pruned, part of the dense time", over(few, dense), 0.35, at_least=False)


PARTS: dict[str, Callable[[Rows, bool], None]] = {
    "gemv": gemv,
    "matmul": matmul,
    "conv": convolutions,
    "pruned": pruned,
}
NAMES = (*PARTS, *DETECTORS)


def dry_run(chosen: list[str], arguments: argparse.Namespace) -> int:
    """Makes and calls everything once; 1 when something of ours or of torch's failed."""
    arguments.quick = True
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        for name in chosen:
            arguments.json = arguments.folder / f"{name}.json"
            one_part(name, arguments, False)
            rows = json.loads(arguments.json.read_text())["rows"]
            failed += [
                f"{row['work']} {row['engine']}: {row['reason']}"
                for row in rows
                if row["reason"] and row["engine"] in ("defakeq", "torch fp16", "cuDNN fp16")
            ]
    print("\n".join(failed) or "dry run: everything was made", file=sys.stderr)
    return 1 if failed else 0


def one_part(name: str, arguments: argparse.Namespace, warm: bool) -> None:
    """Measures a part and writes its rows, in this process."""
    torch.manual_seed(0)
    repeats = 10 if arguments.quick else 50
    rows = Rows(repeats, max(10, arguments.seconds // 8), warm, arguments.json)
    if name in PARTS:
        PARTS[name](rows, arguments.quick)
    else:
        detector(rows, arguments.quick, name, arguments.folder)


def started(name: str, arguments: argparse.Namespace, *more: str) -> subprocess.Popen[bytes]:
    """A process that does one part."""
    quick = ["--quick"] if arguments.quick else []
    file = arguments.folder / f"{name}.json"
    command = [sys.executable, __file__, "--part", name, "--folder", str(arguments.folder)]
    command += ["--json", str(file), "--seconds", str(arguments.seconds), *quick, *more]
    return subprocess.Popen(command)


def ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit code; None when it was stopped."""
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="few shapes and repeats")
    parser.add_argument("--seconds", type=int, default=450, help="for everything together")
    parser.add_argument("--part", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="set everything up without a GPU")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    for name in chosen:
        if name not in NAMES:
            parser.error(f"--only: found {name!r}; accepted is {', '.join(NAMES)}")
    if DRY:
        return dry_run(chosen, arguments)
    if not torch.cuda.is_available():
        print("bench/gpu.py: found no CUDA device; nothing was measured", file=sys.stderr)
        return 2
    if arguments.part:
        one_part(arguments.part, arguments, arguments.warm)
        return 0
    end = time.monotonic() + arguments.seconds
    about = machine()
    slug = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = arguments.json or Path(__file__).parent / "results" / f"gpu-{slug}.json"
    found: dict[str, Any] = {"machine": about, "rows": [], "bars": [], "stopped": {}}
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        warm = [started(name, arguments, "--warm") for name in chosen]
        stop = time.monotonic() + arguments.seconds / 3
        for process in warm:
            ended(process, stop - time.monotonic())
        for i, name in enumerate(chosen):
            left = end - time.monotonic()
            # twice an even share of what is left, so that a slow part does not take it all
            share = left if i == len(chosen) - 1 else min(left, 2 * left / (len(chosen) - i))
            file = arguments.folder / f"{name}.json"
            file.unlink(missing_ok=True)
            code = ended(started(name, arguments), share) if left > 5 else None
            if code != 0:
                found["stopped"][name] = "no time left" if code is None else f"exit code {code}"
                print(f"{name}: {found['stopped'][name]}", file=sys.stderr)
            if file.exists():
                part = json.loads(file.read_text())
                found["rows"] += part["rows"]
                found["bars"] += part["bars"]
            write(path, found)
    return 0 if not found["stopped"] and all(bar["met"] for bar in found["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
