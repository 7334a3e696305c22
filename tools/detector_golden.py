"""The embedded detector as a program, and the bytes that it answers on every processor.

    python tools/detector_golden.py make           # anew, with torch: tests/data/detector
    python tools/detector_golden.py run            # here, on every tier and with 1 to 3 threads
    python tools/detector_golden.py input X.npy    # the pictures, for dq_run ...
    python tools/detector_golden.py compare Y.npy  # ... and what it wrote

All but the first need numpy only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent / "tests/data/detector"
PROGRAM, GOLDEN = FOLDER / "detector.dfq", FOLDER / "golden.json"


def pictures() -> NDArray[np.float32]:
    """Return two pictures of float32 values from -1 to 1, (2, 3, 128, 128)."""
    rows, columns = np.mgrid[0:128, 0:128]
    planes = [
        (rows * (3 + i) + columns * (5 * i + 1) + rows * columns // (i + 2)) % 256 for i in range(6)
    ]
    stack = np.stack(planes).reshape(2, 3, 128, 128).astype(np.float32)
    return stack / np.float32(127.5) - np.float32(1)


def compare(what: str, scores: NDArray[np.float32]) -> None:
    """Exit when the scores differ by a byte from the golden ones."""
    found = np.ascontiguousarray(scores, "<f4").tobytes().hex()
    wanted = json.loads(GOLDEN.read_text())["output_bytes"]
    if found != wanted:
        raise SystemExit(f"{what}: the scores {scores} ({found}) are not {wanted}")
    print(f"{what}: the golden bytes")


def make() -> None:
    """Convert the embedded detector and write it with what it answers."""
    from defakeq.conversion import convert, save
    from defakeq.embedded.build import Candidate, calibration, mixed_plan
    from defakeq.embedded.network import load_float
    from defakeq_kernels import runtime

    model = load_float()
    batches = calibration(pairs=32, seed=1)
    plan = mixed_plan(model, Candidate(narrow=6, wide=4, half=0.04))
    FOLDER.mkdir(parents=True, exist_ok=True)
    save(convert(model, batches[0], plan, calibration=batches, backend="program"), PROGRAM)
    scores = runtime.load(PROGRAM)(pictures())
    found = np.ascontiguousarray(scores, "<f4").tobytes().hex()
    GOLDEN.write_text(json.dumps({"output_bytes": found}) + "\n")


def run() -> None:
    """Compare every usable tier, with 1 to 3 threads."""
    from defakeq_kernels import _core, cpu_info, runtime

    isa = cpu_info()["isa"]
    for tier in isa["built"]:
        if tier not in isa["supported"]:
            try:
                _core.set_isa(tier)
            except ValueError as error:
                print(f"{tier}: refused ({error})")
                continue
            raise SystemExit(f"{tier}: this processor lacks it, but it was taken")
        _core.set_isa(tier)
        for threads in (1, 2, 3):
            program = runtime.load(PROGRAM, threads=threads)
            compare(f"{tier}, {threads} threads", program(pictures()))
    _core.set_isa(None)


def main() -> None:
    if sys.argv[1:] == ["make"]:
        make()
    elif sys.argv[1:] == ["run"]:
        run()
    elif len(sys.argv) == 3 and sys.argv[1] == "input":
        np.save(sys.argv[2], pictures())
    elif len(sys.argv) == 3 and sys.argv[1] == "compare":
        compare(sys.argv[2], np.load(sys.argv[2]))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
