"""Trains the embedded detector: ``python -m defakeq.embedded.train``.

Needs torch and this package, no network and no other data. One core takes about 25 minutes. It
writes the float32 checkpoint and a JSON report with the held-out AUC of every source, the command
and the seeds. Every round renders new pairs from the procedural faces and photographs of the
training split and passes over them a few times.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defakeq.embedded import data
from defakeq.embedded.network import CHECKPOINT, REPORT, EmbeddedDetector, to_input

TRAINED_ON = (
    "Trained on procedural faces rendered by this project and on pieces of seven free photographs "
    "without a frontal face; every forgery is a self-blend made by this project."
)
NOT_TRAINED_ON = (
    "Not trained on any photograph of a frontal face, on the output of any generator (GAN, "
    "diffusion, face-swap or reenactment tool), on video, or on any public deepfake data set. Real "
    "photographs of faces can score above 0.5. Its score shows that the software works on a real "
    "task; it is no evidence about a picture."
)

# What is measured: split, kind, number of pairs.
HELD_OUT: dict[str, tuple[str, str, int]] = {
    "validation/procedural": ("validation", "procedural", 400),
    "validation/scene": ("validation", "scene", 300),
    "test/procedural": ("test", "procedural", 400),
    "test/scene": ("test", "scene", 300),
    "test/astronaut": ("test", "astronaut", 150),
    "test/grace_hopper": ("test", "grace_hopper", 150),
}


def auc(labels: NDArray[np.float32], scores: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve; equal scores count half.

    Raises ``ValueError`` when one of the classes is missing.
    """
    positive = int((labels > 0.5).sum())
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        raise ValueError(f"labels: found {positive} forged and {negative} real, accepted: both")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    total = float(ranks[labels > 0.5].sum()) - positive * (positive + 1) / 2
    return total / (positive * negative)


def predict(
    model: Callable[[Tensor], Tensor], images: NDArray[np.uint8], batch: int = 64
) -> NDArray[np.float64]:
    """Return the logits of crops, uint8 RGB of shape (count, 128, 128, 3)."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = to_input(images[start : start + batch])
            parts.append(model(x).double().flatten().numpy())
    return np.concatenate(parts)


def measure(
    model: Callable[[Tensor], Tensor], sets: dict[str, tuple[Any, Any]]
) -> dict[str, dict[str, float]]:
    """Return for every set its AUC and its accuracy at probability 0.5."""
    out = {}
    for name, (images, labels) in sets.items():
        scores = predict(model, images)
        hits = float(((scores > 0) == (labels > 0.5)).mean())
        out[name] = {
            "auc": round(auc(labels, scores), 4),
            "accuracy": round(hits, 4),
            "pairs": len(labels) // 2,
        }
    return out


def held_out(prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the held-out sets whose name begins with ``prefix``, rendered from their seeds."""
    return {
        name: data.samples(*source) for name, source in HELD_OUT.items() if name.startswith(prefix)
    }


def train(arguments: argparse.Namespace) -> None:
    """Train, measure and write the checkpoint and the report."""
    from safetensors.torch import save_file

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:7.0f} s  {text}", flush=True)

    rng = np.random.default_rng(arguments.seed)
    scenes = data.split_scenes("train")
    say(f"rendering {arguments.faces} procedural faces")
    faces = list(data.bases("train", "procedural", arguments.faces, arguments.seed))
    validation = held_out("validation")
    say("rendered")

    model = EmbeddedDetector()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = EmbeddedDetector()
    average.load_state_dict(model.state_dict())
    pairs = arguments.pairs
    steps = arguments.rounds * arguments.passes * (2 * pairs // arguments.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.rate, total_steps=steps + 1, pct_start=0.15
    )
    loss_of = nn.BCEWithLogitsLoss()
    done = 0
    for turn in range(arguments.rounds):
        images = np.empty((pairs, 2, data.INPUT_SIZE, data.INPUT_SIZE, 3), np.uint8)
        for index in range(pairs):
            if rng.random() < arguments.procedural:
                base = faces[rng.integers(len(faces))]
            else:
                base = data.scene_base(rng, scenes[rng.integers(len(scenes))])
            images[index] = data.make_pair(rng, base)
        say(f"round {turn + 1}: {pairs} pairs rendered")
        model.train()
        total = torch.zeros(())
        count = 0
        half = arguments.batch // 2
        for _ in range(arguments.passes):
            order = rng.permutation(pairs)
            for first in range(0, pairs - half + 1, half):
                chosen = images[order[first : first + half]].reshape(-1, *images.shape[2:])
                x = to_input(chosen)
                flip = torch.from_numpy(rng.random(half) < 0.5).repeat_interleave(2)
                x = torch.where(flip[:, None, None, None], x.flip(3), x)
                y = torch.tensor([0.0, 1.0]).repeat(half)
                logits = model(x.contiguous(memory_format=torch.channels_last))
                loss = loss_of(logits, y * 0.98 + 0.01)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 2.0)
                optimizer.step()
                schedule.step()
                done += 1
                keep = min(0.998, (done + 1) / (done + 10))
                with torch.no_grad():
                    old, new = average.state_dict(), model.state_dict()
                    for name, value in old.items():
                        if value.is_floating_point():
                            value.lerp_(new[name], 1 - keep)
                        else:
                            value.copy_(new[name])
                total += loss.detach()
                count += 1
        average.eval()
        scores = {name: row["auc"] for name, row in measure(average, validation).items()}
        say(f"round {turn + 1}: loss {float(total) / count:.4f}, AUC {scores}")
        save_file(
            {k: v.contiguous() for k, v in average.state_dict().items()}, str(arguments.output)
        )
    results = measure(average.eval(), validation | held_out("test"))
    say(f"held out: { {name: row['auc'] for name, row in results.items()} }")
    command = "python -m defakeq.embedded.train " + shlex.join(sys.argv[1:])
    report = {
        "model": "float32",
        "command": command.strip(),
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("output", "report")},
        "seeds": {
            "training": arguments.seed,
            "first seed of the procedural faces of a split": data.SEEDS,
        },
        "photographs": {
            **{name: list(files) for name, files in data.SCENES.items()},
            "test, with a person": list(data.FACES),
        },
        "trained_on": TRAINED_ON,
        "not_trained_on": NOT_TRAINED_ON,
        "parameters": sum(p.numel() for p in average.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
        "held_out": results,
    }
    arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    say(f"wrote {arguments.output} and {arguments.report}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m defakeq.embedded.train", description=__doc__)
    parser.add_argument("--faces", type=int, default=2000, help="procedural faces to render")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", type=int, default=6000, help="new pairs a round")
    parser.add_argument("--passes", type=int, default=2, help="passes over a round's pairs")
    parser.add_argument("--procedural", type=float, default=0.7, help="share of procedural faces")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--report", type=Path, default=REPORT)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
