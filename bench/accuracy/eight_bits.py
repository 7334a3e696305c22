"""Scores of the reference detectors at 8 bits beside the float ones, with both backends.

    python bench/accuracy/eight_bits.py

Calibrated with 64 generated pictures and compared on 200 of other people.
"""

from __future__ import annotations

import numpy as np
import torch

from defakeq import reference
from defakeq.conversion import BACKENDS, convert
from defakeq.plan import QuantPlan

DETECTORS = ("meso4", "resnet34", "efficientnet", "vit")
PEOPLE = 60
CALIBRATION, COMPARED = 64, 200


def main() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for split, count in (("test", COMPARED), ("train", CALIBRATION)):
        images = reference.evaluation(split, count=PEOPLE).images
        pictures.append(images[rng.permutation(len(images))[:count]])
    print(f"{'detector':14}{'backend':10}{'mean':>8}{'most':>8}")
    for name in DETECTORS:
        model = reference.build(name)
        x, given = (torch.stack([model.preprocess(i) for i in images]) for images in pictures)
        plan = QuantPlan.uniform(model, 8)
        with torch.no_grad():
            wanted = model.score(x)
            for backend in BACKENDS:
                found = convert(model, x[:1], plan, given.split(8), backend=backend).score(x)
                apart = (found - wanted).abs()
                print(f"{name:14}{backend:10}{apart.mean():8.4f}{apart.max():8.4f}", flush=True)


if __name__ == "__main__":
    main()
