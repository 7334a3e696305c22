"""What 8 bits alone cost: mean AUC of the reference detectors converted at 8 bits, less float.

    python bench/accuracy/plain.py [--pictures 256]

All layers at 8 bits, nothing pruned or tuned, 256 calibration pictures; the interval is over the
videos of the test split, the same for all draws of the calibration pictures. "logits" is how far
they are from the float model's: the root mean square over pictures and draws, in their deviations.
"""

from __future__ import annotations

import argparse

import numpy as np
from compare import PEOPLE, calibration, scores
from paired import Pictures, difference, logits

from defakeq import reference
from defakeq.compress.budget import file_size
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.conversion import convert
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan

DRAWS = (0, 1, 2, 3)


def main() -> None:
    """Converts, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detectors", nargs="+", default=list(reference.NAMES))
    parser.add_argument("--pictures", type=int, default=256)
    arguments = parser.parse_args()
    test = reference.evaluation("test", PEOPLE)
    pictures = Pictures(test.families, test.videos)
    print(
        f"{'detector':14}{'file':>8}{'float':>8}{'8 bits':>8}{'logits':>9}  each draw, less float"
    )
    for name in arguments.detectors:
        model = reference.build(name)
        exact = scores(model, model, test.images)
        runs = []
        for draw in DRAWS:
            given, _ = calibration(model, arguments.pictures, draw)
            plan = QuantPlan.uniform(model, 8)
            program = convert(model, given[:1], plan, given.split(8), backend="program")
            assert isinstance(program, ProgramModule)
            runs.append(scores(program, model, test.images))
        part = file_size(program) / checkpoint_bytes(model)
        means = [mean(pictures, run) for run in runs]
        own = difference(pictures, runs, [exact])
        low, high = (100 * bound for bound in own["interval"])
        wanted = logits(exact)
        off = np.mean([np.square(logits(run) - wanted).mean() for run in runs]) / wanted.var()
        each = " ".join(f"{value - mean(pictures, exact):+.2f}" for value in means)
        print(
            f"{name:14}{100 * part:7.1f}%{mean(pictures, exact):8.2f}{np.mean(means):8.2f}"
            f"{100 * np.sqrt(off):7.1f} %  "
            f"{each}; mean {100 * own['difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
            flush=True,
        )


def mean(pictures: Pictures, run: np.ndarray) -> float:
    """The mean AUC over the families, in points."""
    return 100 * float(np.mean([wins.mean() for wins in pictures.wins(run).values()]))


if __name__ == "__main__":
    main()
