"""Trains the reference detectors: ``python bench/accuracy/train.py``.

Each learns to tell self-blended faces from real ones and is tested on all five forgery families.
Training data is made once and kept in the cache folder (``DEFAKEQ_CACHE``). All of it takes about
18 minutes of one core; with ``--only`` two processes can share the work. It writes
``python/defakeq/reference/weights/NAME.safetensors`` (16 bits) and ``NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq import metrics
from defakeq.data.forgeries import FAMILIES
from defakeq.reference import WEIGHTS, Evaluation, evaluation
from defakeq.reference.data import training_pairs
from defakeq.reference.networks import NETWORKS, Reference

TRAINED = "blend"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: epochs over the pairs, peak learning rate, and arithmetic."""

    epochs: int
    rate: float
    decay: float
    bfloat16: bool  # faster for dense convolutions, slower for depthwise ones


RECIPES = {
    "meso4": Recipe(1, 4e-3, 0.01, True),
    "resnet34": Recipe(2, 3e-3, 0.05, True),
    "efficientnet": Recipe(1, 4e-3, 0.05, False),
    "vit": Recipe(2, 1.5e-3, 0.05, False),
}


def to_batch(images: np.ndarray) -> Tensor:
    """Return pictures, uint8 (batch, 64, 64, 3), as `Reference.preprocess` does."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def scores(model: Reference, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = [model.score(to_batch(images[i : i + 64])) for i in range(0, len(images), 64)]
    return torch.cat(parts).double().numpy()


def measure(model: Reference, data: Evaluation) -> dict[str, dict[str, float]]:
    """Return frame and video AUC of every family beside the real pictures."""
    found = scores(model, data.images)
    families = np.array(data.families)
    rows = {}
    for family in FAMILIES:
        chosen = np.flatnonzero((families == family) | (families == "real"))
        videos = [data.videos[index] for index in chosen]
        row = metrics.summary(videos, data.labels[chosen], found[chosen], 200, 0)
        rows[family] = {
            "frame_auc": round(row["frame"]["auc"], 4),
            "video_auc": round(row["video"]["auc"], 4),
            "pictures": len(chosen),
        }
    return rows


def batches(
    pairs: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled, augmented batches: as many real pictures, then their forgeries."""
    order = rng.permutation(len(pairs))
    for first in range(0, len(pairs) - size + 1, size):
        chosen = pairs[np.sort(order[first : first + size])]
        x = to_batch(np.concatenate([chosen[:, 0], chosen[:, 1]]))
        flip = torch.from_numpy(rng.random(size) < 0.5).repeat(2)[:, None, None, None]
        gain = torch.from_numpy(rng.uniform(0.8, 1.2, (size, 3, 1, 1))).float().repeat(2, 1, 1, 1)
        x = torch.where(flip, x.flip(3), x)
        yield ((x + 1) * gain - 1).clamp(-1, 1), torch.arange(2).repeat_interleave(size)


def train(name: str, arguments: argparse.Namespace) -> None:
    """Train one network and write its weights and report; Ctrl+C ends the training early."""
    recipe, start, spent = RECIPES[name], time.monotonic(), time.process_time()
    log: list[str] = []

    def say(text: str) -> None:
        log.append(f"{time.monotonic() - start:.0f} s: {text}")
        print(name, log[-1], flush=True)

    torch.manual_seed(arguments.seed)
    shards = [
        training_pairs(arguments.pairs, arguments.faces, seed) for seed in range(arguments.shards)
    ]
    pairs = np.concatenate(shards)
    validation = evaluation("val", arguments.people)
    say(f"{len(pairs)} pairs")
    model, average = NETWORKS[name](), NETWORKS[name]()
    model.to(memory_format=torch.channels_last)
    average.load_state_dict(model.state_dict())
    average.eval()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{name}.safetensors"
    epochs = max(1, round(recipe.epochs * arguments.scale))
    try:
        for epoch, loss in enumerate(fit(model, average, pairs, recipe, epochs, arguments), 1):
            store(average, path)
            found = measure(average, validation)
            aucs = {family: row["frame_auc"] for family, row in found.items()}
            say(f"epoch {epoch} of {epochs}: loss {loss:.4f}, val {aucs}")
    except KeyboardInterrupt:
        say("ended early")
    stored = store(average, path)
    average.load_state_dict({k: v.to(average.state_dict()[k]) for k, v in stored.items()})
    results = {
        "val": measure(average, validation),
        "test": measure(average, evaluation("test", 2 * arguments.people)),
        "test, 128 pixels": measure(
            average, resized(evaluation("test", arguments.people, size=128))
        ),
    }
    say(f"test { {family: row['frame_auc'] for family, row in results['test'].items()} }")
    write_report(name, arguments, recipe, results, log, time.process_time() - spent)


def fit(
    model: Reference,
    average: Reference,
    pairs: np.ndarray,
    recipe: Recipe,
    epochs: int,
    arguments: argparse.Namespace,
) -> Iterator[float]:
    """Train ``model``, keep the running mean of its weights in ``average``; yield each loss."""
    rng = np.random.default_rng(arguments.seed)
    steps = epochs * (len(pairs) // arguments.batch)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=steps + 1, pct_start=0.2
    )
    done = 0
    for _ in range(epochs):
        model.train()
        losses = []
        for x, y in batches(pairs, arguments.batch, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            logits = logits.float()
            real, forged = (logits[:, 1] - logits[:, 0]).chunk(2)
            # A forgery ought to score above the very shot that it was made of.
            loss = F.cross_entropy(logits, y, label_smoothing=0.02)
            loss = loss + 0.5 * F.softplus(real - forged).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            done += 1
            losses.append(float(loss.detach()))
            blend_into(average, model, min(0.995, (done + 1) / (done + 10)))
        yield float(np.mean(losses))


def store(model: Reference, path: Path) -> dict[str, Tensor]:
    """Write a network's weights with 16 bits, and return them."""
    from safetensors.torch import save_file

    stored = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    beside = path.with_name(f"{path.name}.part")
    save_file(stored, str(beside))
    beside.replace(path)
    return stored


def blend_into(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move the averaged weights towards the trained ones."""
    with torch.no_grad():
        for old, new in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if old.is_floating_point():
                old.lerp_(new, 1 - keep)
            else:
                old.copy_(new)


def resized(data: Evaluation) -> Evaluation:
    """Return the pictures at the networks' size, resized as their preprocessing does."""
    preprocess = Reference.interface.preprocess
    images = [((preprocess(image) + 1) * 127.5).round() for image in data.images]
    stack = torch.stack(images).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Evaluation(stack, data.labels, data.families, data.videos)


def write_report(
    name: str,
    arguments: argparse.Namespace,
    recipe: Recipe,
    results: dict[str, Any],
    log: list[str],
    seconds: float,
) -> None:
    network = NETWORKS[name]()
    document = {
        "network": name,
        "trained_on": TRAINED,
        "command": "python bench/accuracy/train.py " + shlex.join(sys.argv[1:]),
        "seed": arguments.seed,
        "pairs": arguments.pairs * arguments.shards,
        "faces": arguments.faces * arguments.shards,
        "batch": 2 * arguments.batch,
        "scale": arguments.scale,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in network.parameters()),
        "processor_seconds": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
        "results": results,
        "log": log,
    }
    path = arguments.output / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=15000, help="pairs of each shard")
    parser.add_argument("--faces", type=int, default=1500, help="faces of each shard")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--people", type=int, default=100, help="of validation; tests have twice")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a batch")
    parser.add_argument("--scale", type=float, default=1.0, help="of the epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    for name in arguments.only:
        train(name, arguments)


if __name__ == "__main__":
    main()
