"""Metrics of binary detectors: AUC, EER, AP, accuracy, calibration, with bootstrap intervals.

Computed in numpy, in double precision, from integer counts over the sorted distinct scores: torch
is not needed, equal scores count half, and the order of the samples has no influence on any bit of
a result. (The curve metrics of torchmetrics work in single precision and sum in the order of
arrival, so that a data set in shards would differ from the whole in the last digits.)

Labels are 1 for forged and 0 for real; scores are probabilities of "forged", 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Curve:
    """Counts at every distinct score, the highest first: samples with that score or a higher one.

    ``fakes`` and ``reals`` begin with 0, before the first of ``scores``; both are int64.
    """

    scores: Scores
    fakes: NDArray[np.int64]
    reals: NDArray[np.int64]

    @property
    def positives(self) -> int:
        """Return the number of forged samples."""
        return int(self.fakes[-1])

    @property
    def negatives(self) -> int:
        """Return the number of real samples."""
        return int(self.reals[-1])


def check(labels: Any, scores: Any) -> tuple[Labels, Scores]:
    """Return labels and scores as arrays.

    Raises ``ValueError`` for other labels than 0 and 1, scores outside of 0 to 1 or not finite,
    different lengths, and for none at all.
    """
    y, p = np.asarray(labels), np.asarray(scores, np.float64)
    if y.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"scores: found shape {p.shape} for labels of {y.shape}, accepted: equal")
    if y.size == 0:
        raise ValueError("labels: found none, accepted: at least one")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels: found {np.unique(y).tolist()[:5]}, accepted: 0 and 1")
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        raise ValueError(f"scores: found {p[bad][0]} (of {int(bad.sum())}), accepted: 0 to 1")
    return y.astype(np.int64), p


def curve(labels: Any, scores: Any, counts: Any = None) -> Curve:
    """Return the counts at every threshold; ``counts`` says how often each sample counts."""
    y, p = check(labels, scores)
    times = np.ones(len(y), np.int64) if counts is None else np.asarray(counts, np.int64)
    distinct, place = np.unique(-p, return_inverse=True)
    fakes = np.zeros(len(distinct) + 1, np.int64)
    reals = np.zeros(len(distinct) + 1, np.int64)
    np.add.at(fakes, place + 1, times * y)
    np.add.at(reals, place + 1, times * (1 - y))
    return Curve(-distinct, np.cumsum(fakes), np.cumsum(reals))


def _both(found: Curve, what: str) -> None:
    if found.positives == 0 or found.negatives == 0:
        raise ValueError(
            f"labels: found {found.positives} forged and {found.negatives} real, accepted: both, "
            f"for {what}"
        )


def auc_of(found: Curve) -> float:
    """Return the area under the ROC curve: the chance that a forged sample scores higher."""
    _both(found, "the AUC")
    # Twice the number of ordered pairs is an integer, so nothing is rounded before the division.
    pairs = np.diff(found.reals) * (found.fakes[1:] + found.fakes[:-1])
    return int(pairs.sum()) / (2 * found.positives * found.negatives)


def auc(labels: Any, scores: Any) -> float:
    """Return the area under the ROC curve; equal scores count half.

    Raises ``ValueError`` when one of the classes is missing.
    """
    return auc_of(curve(labels, scores))


def eer_of(found: Curve) -> float:
    """Return the rate at which misses and false alarms are equally frequent, by interpolation."""
    _both(found, "the EER")
    # Over the common denominator: false alarms minus misses grows from -1 to 1 along the curve.
    gap = found.reals * found.positives - (found.positives - found.fakes) * found.negatives
    after = int(np.searchsorted(gap, 0))
    rate = found.reals / found.negatives
    if gap[after] == 0:
        return float(rate[after])
    low, high = int(gap[after - 1]), int(gap[after])
    share = -low / (high - low)
    return float(rate[after - 1] + share * (rate[after] - rate[after - 1]))


def eer(labels: Any, scores: Any) -> float:
    """Return the equal error rate. Raises ``ValueError`` when one of the classes is missing."""
    return eer_of(curve(labels, scores))


def average_precision_of(found: Curve) -> float:
    """Return the mean precision over the forged samples, each at its own score as threshold."""
    _both(found, "the average precision")
    fakes, reals = found.fakes[1:], found.reals[1:]
    gained = np.diff(found.fakes)
    rises = gained > 0
    terms = gained[rises] * (fakes[rises] / (fakes[rises] + reals[rises]))
    return math.fsum(terms.tolist()) / found.positives


def average_precision(labels: Any, scores: Any) -> float:
    """Return the average precision. Raises ``ValueError`` when one of the classes is missing."""
    return average_precision_of(curve(labels, scores))


def accuracy(labels: Any, scores: Any, threshold: float = 0.5) -> float:
    """Return the share of samples on the right side; a score equal to it counts as forged."""
    y, p = check(labels, scores)
    return int(((p >= threshold) == (y == 1)).sum()) / len(y)


def calibration_error(labels: Any, scores: Any, bins: int = BINS) -> float:
    """Return the expected calibration error over ``bins`` bins of equal width.

    It is the mean over the samples of how far, in their bin, the mean score and the share of forged
    samples are apart (Naeini and others, AAAI 2015, for the class "forged").
    """
    y, p = check(labels, scores)
    if bins < 1:
        raise ValueError(f"bins: found {bins}, accepted: at least 1")
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    gaps = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            gaps.append(abs(math.fsum(p[inside].tolist()) - int(y[inside].sum())))
    return math.fsum(gaps) / len(y)


def by_video(videos: Sequence[str], labels: Any, scores: Any) -> tuple[list[str], Labels, Scores]:
    """Return each video's name, label and mean score, in the order of the names.

    Raises ``ValueError`` when a video's samples have different labels.
    """
    y, p = check(labels, scores)
    if len(videos) != len(y):
        raise ValueError(f"videos: found {len(videos)} for {len(y)} scores, accepted: as many")
    grouped: dict[str, list[int]] = {}
    for index, video in enumerate(videos):
        grouped.setdefault(video, []).append(index)
    names = sorted(grouped)
    for name in names:
        if len(set(y[grouped[name]].tolist())) > 1:
            raise ValueError(f"labels: found both in the video {name!r}, accepted: one")
    means = [math.fsum(p[grouped[name]].tolist()) / len(grouped[name]) for name in names]
    return (
        names,
        np.array([y[grouped[name][0]] for name in names], np.int64),
        np.array(means, np.float64),
    )


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    groups: Sequence[str],
    labels: Any,
    scores: Any,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return AUC, EER, AP and accuracy with percentile intervals at ``level``.

    Whole groups (videos) are drawn with replacement, real and forged ones apart, since the frames
    of a video are no independent samples. The draws depend on the groups' sorted names and ``seed``
    alone. Raises ``ValueError`` when one of the classes is missing.
    """
    y, p = check(labels, scores)
    if len(groups) != len(y):
        raise ValueError(f"groups: found {len(groups)} for {len(y)} scores, accepted: as many")
    if repeats < 1:
        raise ValueError(f"repeats: found {repeats}, accepted: at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level: found {level}, accepted: between 0 and 1")
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    kind = np.zeros(len(names), np.int64)
    kind[member[y == 1]] = 1
    distinct, place = np.unique(-p, return_inverse=True)
    # How many of a group's samples, real and forged, have each distinct score.
    rows = {name: [] for name in ("auc", "eer", "ap", "accuracy")}  # type: dict[str, list[float]]

    def measure(counts: NDArray[np.int64]) -> dict[str, float]:
        times = counts[member]
        fakes = np.bincount(place, times * y, len(distinct)).astype(np.int64)
        reals = np.bincount(place, times * (1 - y), len(distinct)).astype(np.int64)
        zero = np.zeros(1, np.int64)
        found = Curve(
            -distinct,
            np.concatenate([zero, np.cumsum(fakes)]),
            np.concatenate([zero, np.cumsum(reals)]),
        )
        high = found.scores >= 0.5
        right = int(fakes[high].sum() + reals[~high].sum())
        return {
            "auc": auc_of(found),
            "eer": eer_of(found),
            "ap": average_precision_of(found),
            "accuracy": right / (found.positives + found.negatives),
        }

    whole = measure(np.ones(len(names), np.int64))
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(kind == 0), np.flatnonzero(kind == 1)]
    for _ in range(repeats):
        counts = np.zeros(len(names), np.int64)
        for members in classes:
            if len(members):
                drawn = rng.integers(0, len(members), len(members))
                counts[members] = np.bincount(drawn, minlength=len(members))
        for name, value in measure(counts).items():
            rows[name].append(value)
    tail = (1 - level) / 2
    return {
        name: Interval(value, *(float(q) for q in np.quantile(rows[name], [tail, 1 - tail])))
        for name, value in whole.items()
    }


def summary(
    videos: Sequence[str], labels: Any, scores: Any, repeats: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of frames and of videos as plain values.

    Without one of the classes, AUC, EER and AP are None, and there are no intervals.
    """
    y, p = check(labels, scores)
    names, video_y, video_p = by_video(videos, y, p)
    out: dict[str, Any] = {}
    for kind, groups, truth, values in (
        ("frame", list(videos), y, p),
        ("video", names, video_y, video_p),
    ):
        row: dict[str, Any] = {
            "count": len(truth),
            "forged": int(truth.sum()),
            "auc": None,
            "eer": None,
            "ap": None,
            "accuracy": accuracy(truth, values),
            "calibration_error": calibration_error(truth, values),
        }
        if 0 < truth.sum() < len(truth):
            found = bootstrap(groups, truth, values, repeats, seed)
            row |= {name: interval.value for name, interval in found.items()}
            row["intervals"] = {name: [part.low, part.high] for name, part in found.items()}
        out[kind] = row
    return out
