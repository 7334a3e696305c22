"""Calibration images from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from defakeq.compress.calibration import Calibration
from defakeq.scorer import Scorer


def from_folder(
    path: Path,
    scorer: Scorer,
    count: int = 256,
    dataset: str | None = None,
    split: str = "train",
    seed: int = 0,
) -> Calibration:
    """Images of a data set or a folder, prepared for a detector.

    Args:
        path: of a data set, or of pictures; in ``real/`` and ``fake/`` they have labels.
        scorer: whose preparation is used.
        count: images at most, drawn from all videos alike, half of each class.
        dataset: its name; None: "folder" where there is ``real/`` and ``fake/``, else pictures
            without labels.
        split: of the data set.
        seed: of the draw.

    Raises:
        ValueError: fewer than two pictures that can be read.
    """
    from defakeq.data import open_dataset
    from defakeq.data.folder import is_plain
    from defakeq.images import collect, read_image

    if not path.is_dir():
        raise ValueError(f"data: found {path}, which is no folder; accepted is one with pictures")
    rng = np.random.default_rng(seed)
    if dataset is None and not is_plain(path):
        files = collect([path])
        picked = sorted(rng.permutation(len(files))[:count].tolist())
        arrays = [scorer.prepare(read_image(files[i])) for i in picked]
        if len(arrays) < 2:
            raise ValueError(f"data: found {len(arrays)} pictures in {path}; accepted is 2 or more")
        return Calibration.of(scorer.tensor(np.stack(arrays)))
    found = open_dataset(path, dataset or "folder", split)
    labels = np.array([sample.label for sample in found.samples], np.int64)
    chosen: list[int] = []
    for label in (0, 1):
        own = rng.permutation(np.flatnonzero(labels == label))
        videos: dict[str, int] = {}
        turn = []
        for i in own:
            video = found.samples[i].video
            turn.append(videos.get(video, 0))
            videos[video] = turn[-1] + 1
        order = np.argsort(np.array(turn, np.int64), kind="stable")
        chosen += own[order][: (count + 1 - label) // 2].tolist()
    part = found.select(sorted(chosen))
    stacks, kept = [], []
    for batch in part.batches(32, None, 0, prepare=scorer.prepare):
        stacks.append(batch.images)
        kept.append(batch.labels)
    if not stacks:
        raise ValueError(f"data: found no readable picture in {path}; accepted is 2 or more")
    images = scorer.tensor(np.concatenate(stacks)).contiguous()
    return Calibration.of((images, torch.from_numpy(np.concatenate(kept))))
