"""`defakeq compress` on every detector: does the file fit, load without torch, and do as its twin?

    python bench/accuracy/nineteen.py --out DIR [--results bench/results]

Each detector gets random weights that are spread as trained ones are, a few generated pictures and
the preset "quick", so this says nothing about accuracy. Each finished detector is one JSON file in
DIR, so that a killed run continues; ``nineteen.txt`` is made from them after every detector, or by
``--collect`` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defakeq import detectors
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.compress.workdir import write_whole
from defakeq.data.generate import Options, generate
from defakeq.lower.check import check
from defakeq.lower.twin import Twin
from defakeq_kernels import dfq, runtime

SIZE = 0.10
COMPARED = 4  # pictures whose scores are compared

# what a board without torch does with a file
RUN = """
import sys
sys.modules["torch"] = None
import numpy as np
from defakeq_kernels import runtime
images, out = np.load(sys.argv[2]), sys.argv[3]
np.save(out, np.asarray(runtime.load(sys.argv[1])(images)))
"""


def compressed(
    name: str, model: detectors.Detector, folder: Path, size: float, images: int, threads: int
) -> dict[str, Any]:
    """Runs the command; its seconds, megabytes and the size that was asked."""
    from safetensors.torch import save_file

    weights = folder / "weights.safetensors"
    if not weights.exists():
        save_file(model.state_dict(), str(weights))
    words = ["compress", "--detector", name, "--weights", weights, "--data", folder.parent / "data"]
    words += ["--size", size, "--images", images, "--preset", "quick", "--threads", threads]
    words += ["--quiet", "--out", folder / "m.dfq", "--json", folder / "report.json"]
    with open(folder / "log.txt", "wb") as log:
        begin = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "defakeq", *map(str, words)], stderr=log, stdout=log
        )
        _, status, usage = os.wait4(child.pid, 0)
    text = (folder / "log.txt").read_text()
    least = re.search(r"accepted is at least (0\.\d+)", text.replace("\n", " "))
    if status and least and size < float(least[1]) * 1.01:
        found = compressed(name, model, folder, float(least[1]) * 1.01, images, threads)
        return {**found, "least": float(least[1])}
    if status:
        raise RuntimeError(f"{name}: {text[-2000:]}")
    return {
        "asked": size,
        "seconds": round(time.monotonic() - begin, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "megabytes": usage.ru_maxrss // 1024,
    }


def row(name: str, folder: Path, images: int, threads: int) -> dict[str, Any]:
    """One detector, from its weights to its scores."""
    folder.mkdir(parents=True, exist_ok=True)
    model = detectors.untrained(name)
    parameters = sum(p.numel() for p in model.parameters())
    checkpoint = checkpoint_bytes(model)
    found = compressed(name, model, folder, SIZE, images, threads)
    x = pictures(model, folder.parent / "data")
    np.save(folder / "images.npy", x.numpy())
    path = folder / "m.dfq"
    own = [sys.executable, "-c", RUN, path, folder / "images.npy", folder / "scores.npy"]
    subprocess.run([str(word) for word in own], check=True)
    scores = torch.from_numpy(np.load(folder / "scores.npy")).reshape(len(x), -1)
    with torch.no_grad():
        exact = model.score(x)
        probability = model.interface.probability
        twin = probability(Twin.read(path)(x)[0].reshape(len(x), -1))
    del model
    tensors, network = dfq.read(path)
    nodes = check(tensors, network, [x[0]], _once)
    ours = probability(scores)
    report = json.loads((folder / "report.json").read_text())
    return {
        "detector": name,
        "parameters": parameters,
        "checkpoint": checkpoint,
        "images": images,
        **found,
        "bytes": path.stat().st_size,
        "bits": report["bits_a_weight"],
        "pruned": sum(e["outputs"] - e["kept_outputs"] for e in report["layers"]),
        "restored": sum(e["restored"] for e in report["layers"]),
        "seconds_by_stage": report["seconds"],
        "nodes": len(nodes),
        "wrong_nodes": [node.name for node in nodes if not node.ok],
        "from_twin": float((ours - twin).abs().max()),
        "from_float": float((ours - exact).abs().max()),
    }


def _once(tensors: Any, network: Any, arrays: Any) -> list[Any]:
    results = runtime.loads(dfq.dumps(tensors, network), 1)(*arrays)
    return results if isinstance(results, list) else [results]


def pictures(model: detectors.Detector, data: Path) -> torch.Tensor:
    """Pictures of other people than those of the calibration."""
    from defakeq.data import open_dataset

    found = open_dataset(data, "folder", "test")
    chosen = np.linspace(0, len(found) - 1, COMPARED).astype(int).tolist()
    batches = found.select(chosen).batches(64, None, 0, prepare=np.array)
    return torch.stack([model.preprocess(image) for b in batches for image in b.images])


def table(rows: list[dict[str, Any]]) -> str:
    """One line a detector."""
    head = (
        f"{'detector':16}{'M':>7}{'asked':>8}{'file':>8}{'bits':>6}{'pruned':>8}{'half':>6}"
        f"{'images':>8}{'seconds':>9}{'CPU s':>8}{'MB':>8}{'nodes':>7}{'wrong':>7}"
        f"{'from twin':>11}{'from float':>12}"
    )
    lines = [head]
    for r in rows:
        lines.append(
            f"{r['detector']:16}{r['parameters'] / 1e6:7.2f}{100 * r['asked']:7.2f}%"
            f"{100 * r['bytes'] / r['checkpoint']:7.2f}%{r['bits']:6.2f}{r['pruned']:8}"
            f"{r['restored']:6}{r['images']:8}{r['seconds']:9.0f}{r['processor_seconds']:8.0f}"
            f"{r['megabytes']:8}{r['nodes']:7}{len(r['wrong_nodes']):7}{r['from_twin']:11.4f}"
            f"{r['from_float']:12.4f}"
        )
    return "\n".join(lines) + "\n"


def publish(folder: Path, into: Path) -> str:
    """Writes the table of what is finished."""
    found = [folder / f"{name}.json" for name in detectors.names()]
    rows = [json.loads(path.read_text()) for path in found if path.exists()]
    text = table(rows)
    command = "$ python bench/accuracy/nineteen.py --out DIR\n\n"
    write_whole(into / "nineteen.txt", (command + text).encode())
    return text


def main() -> None:
    """Fills the missing rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detectors", nargs="+", default=list(detectors.names()))
    parser.add_argument("--images", type=int, default=2, help="for calibration")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="folder of the table; default: OUT")
    parser.add_argument("--collect", action="store_true", help="run nothing: write what is there")
    arguments = parser.parse_args()
    into = arguments.results or arguments.out
    if arguments.collect:
        print(publish(arguments.out, into))
        return
    torch.set_num_threads(arguments.threads)
    data = arguments.out / "data"
    if not data.exists():
        people = max(4, arguments.images // 2)
        generate(data, Options("folder", people, frames=1, size=160, splits=("train", "test")))
    for name in arguments.detectors:
        path = arguments.out / f"{name}.json"
        if path.exists():
            continue
        found = row(name, arguments.out / name, arguments.images, arguments.threads)
        write_whole(path, (json.dumps(found, indent=1) + "\n").encode())
        print(json.dumps(found), flush=True)
        for made in ("weights.safetensors", "m.dfq"):
            (arguments.out / name / made).unlink(missing_ok=True)
        publish(arguments.out, into)
    print(publish(arguments.out, into))


if __name__ == "__main__":
    main()
