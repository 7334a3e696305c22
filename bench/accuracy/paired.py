"""Two methods on the same pictures: differences of the mean AUC and of the scores themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPEATS = 2000
_EDGE = 1e-4  # scores are kept to six digits: nearer to 0 and 1, logits would be of rounding
Floats = NDArray[np.float64]


IMAGES = 256  # of the calibration, where nothing else is said


def label(row: dict[str, Any]) -> str:
    """The method of a row, with its calibration images where these are not `IMAGES`."""
    return row["method"] + ("" if row["images"] == IMAGES else f", {row['images']} images")


@dataclass(frozen=True)
class Pictures:
    """Family and video of each scored picture."""

    families: Sequence[str]
    videos: Sequence[str]

    def wins(self, scores: Sequence[float]) -> dict[str, Floats]:
        """For each family [its videos, real videos]: how often the forged picture scores higher."""
        values = np.asarray(scores, np.float64)
        real, members = self._members("real")
        found = {}
        for family in sorted(set(self.families) - {"real"}):
            forged, own = self._members(family)
            off = values[forged][:, None] - values[real][None]
            higher = (off > 0) + 0.5 * (off == 0)
            found[family] = own @ higher @ members.T
        return found

    def _members(self, family: str) -> tuple[NDArray[np.int64], Floats]:
        """A family's pictures, and for each of its videos the share of each: [videos, pictures]."""
        places = np.flatnonzero([own == family for own in self.families])
        names = np.asarray(self.videos)[places]
        member = (np.unique(names)[:, None] == names[None]).astype(np.float64)
        return places, member / member.sum(1, keepdims=True)


def difference(
    pictures: Pictures, first: Sequence[Any], second: Sequence[Any], seed: int = 0
) -> dict[str, Any]:
    """The mean AUC of the first method's runs less that of the second's, and its 95 % interval.

    Videos are drawn with replacement, the same ones for both methods and all runs; the runs (seeds)
    themselves are not drawn. A run is the scores of all pictures.
    """
    ours = [pictures.wins(run) for run in first]
    theirs = [pictures.wins(run) for run in second]
    rng = np.random.default_rng(seed)
    total, draws = 0.0, np.zeros(REPEATS)
    real: Floats | None = None
    for family in ours[0]:
        mean = np.mean([run[family] for run in ours], 0)
        apart = mean - np.mean([run[family] for run in theirs], 0)
        forged_count, real_count = apart.shape
        if real is None:
            real = _shares(rng, real_count)
        total += float(apart.mean()) / len(ours[0])
        forged = _shares(rng, forged_count)
        draws += ((forged @ apart) * real).sum(1) / len(ours[0])
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"difference": total, "interval": [float(low), float(high)]}


def _shares(rng: np.random.Generator, count: int) -> Floats:
    drawn = rng.integers(0, count, (REPEATS, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]) / count


def differences(rows: list[dict[str, Any]], pictures: Pictures) -> list[dict[str, Any]]:
    """Default less every other method, and every method less float, where there are scores."""
    runs: dict[tuple[str, float, str], list[Any]] = {}
    for row in rows:
        if "scores" in row:
            key = (row["detector"], row["size"], label(row))
            runs.setdefault(key, []).append(row["scores"])
    found = []
    for (detector, size, method), own in sorted(runs.items()):
        if method == "float":
            continue
        others = [("float", runs.get((detector, 1.0, "float")))]
        if method == "default":
            names = sorted(m for d, s, m in runs if (d, s) == (detector, size) and m != "default")
            others += [(name, runs[detector, size, name]) for name in names]
        for other, theirs in others:
            if theirs:
                about = {"detector": detector, "size": size, "first": method, "second": other}
                about["runs"] = [len(own), len(theirs)]
                found.append({**about, **difference(pictures, own, theirs)})
    return found


def drifts(rows: list[dict[str, Any]], videos: Sequence[str]) -> list[dict[str, Any]]:
    """How far each method's logits are from the float model's, and the 95 % interval over videos.

    The root mean square of the difference, as a part of the float logits' standard deviation. It
    tells methods apart that differ by less than the noise of an AUC.
    """
    floats = {row["detector"]: row for row in rows if row["method"] == "float" and "scores" in row}
    runs: dict[tuple[str, float, str], list[Floats]] = {}
    for row in rows:
        if row["method"] != "float" and "scores" in row and row["detector"] in floats:
            exact = logits(floats[row["detector"]]["scores"])
            off = np.square(logits(row["scores"]) - exact) / exact.var()
            key = (row["detector"], row["size"], label(row))
            runs.setdefault(key, []).append(off)
    names, video = np.unique(np.asarray(videos), return_inverse=True)
    counts = np.bincount(video)
    draws = _shares(np.random.default_rng(0), len(names))
    found = []
    for (detector, size, method), own in sorted(runs.items()):
        sums = np.bincount(video, np.mean(own, 0))
        low, high = np.sqrt(np.quantile((draws @ sums) / (draws @ counts), [0.025, 0.975]))
        about = {"detector": detector, "size": size, "method": method}
        drift = float(np.sqrt(sums.sum() / counts.sum()))
        found.append({**about, "runs": len(own), "drift": drift, "interval": [low, high]})
    return found


def logits(scores: Sequence[float]) -> Floats:
    """The logits of probabilities, those beyond `_EDGE` as if they were there."""
    inside = np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside / (1 - inside)))


def drift_table(found: list[dict[str, Any]]) -> str:
    """One line a method, in percent."""
    return "".join(
        f"{100 * one['size']:5.1f}%  {one['detector']:13} {one['method']}"
        f": {100 * one['drift']:.1f} % [{100 * one['interval'][0]:.1f}, "
        f"{100 * one['interval'][1]:.1f}], {one['runs']} seeds\n"
        for one in found
    )


def table(found: list[dict[str, Any]]) -> str:
    """One line a difference, in points of AUC."""
    lines = []
    for one in found:
        low, high = (100 * bound for bound in one["interval"])
        runs = " and ".join(map(str, one["runs"]))
        lines.append(
            f"{100 * one['size']:5.1f}%  {one['detector']:13} {one['first']} less {one['second']}: "
            f"{100 * one['difference']:+.2f} [{low:+.2f}, {high:+.2f}], {runs} seeds"
        )
    return "\n".join(lines) + "\n"
