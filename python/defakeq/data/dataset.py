"""A data set as samples, and its pictures in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.data.benchmark import find_json, read_benchmark
from defakeq.data.folder import is_plain, read_folder
from defakeq.data.labels import BENCHMARKS, COMPRESSIONS, SPLITS
from defakeq.data.report import Problem, Report
from defakeq.data.sample import Sample
from defakeq.data.video import frames_at, largest_face
from defakeq.faces import MARGIN
from defakeq.images import read_image

if TYPE_CHECKING:
    import torch

ByteImage = NDArray[np.uint8]
Prepare = Callable[[ByteImage], NDArray[Any]]

# The name of plain folders among the names of data sets.
FOLDER = "folder"
NAMES = (*BENCHMARKS, FOLDER)


@dataclass(frozen=True)
class Batch:
    """Pictures with their samples, in the data set's order.

    ``images`` is uint8 RGB (count, size, size, 3), or a stack of whatever ``prepare`` returns.
    """

    images: NDArray[Any]
    samples: list[Sample]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the labels: 1 is forged, 0 is real."""
        return np.array([sample.label for sample in self.samples], np.int64)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 images (count, 3, size, size) from 0 to 1, and int64 labels.

        Raises ``ValueError`` when the images are no uint8 RGB.
        """
        import torch

        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images: found {self.images.dtype}, accepted: uint8 RGB")
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        return images, torch.from_numpy(self.labels)


@dataclass
class Dataset:
    """The samples of one data set in a fixed order, and the problems that were found."""

    name: str
    samples: list[Sample]
    report: Report = field(default_factory=Report)

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, indices: Sequence[int]) -> Dataset:
        """Return the data set of some of its samples, with a report of its own."""
        return Dataset(self.name, [self.samples[index] for index in indices])

    def batches(
        self,
        batch: int = 32,
        size: int | None = 256,
        workers: int = 2,
        margin: float = MARGIN,
        prepare: Prepare | None = None,
    ) -> Iterator[Batch]:
        """Yield all readable pictures in order, in batches of ``batch``; the last may be smaller.

        ``prepare`` turns a picture of any shape into one of a fixed shape; without it pictures are
        resized to ``size`` squared. ``workers`` threads read ahead (0: none). What cannot be read
        goes to :attr:`report`.
        """
        for name, value, least in (("batch", batch, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name}: found {value}, accepted: at least {least}")
        if prepare is None:
            prepare = _resizer(256 if size is None else size)
        images: list[NDArray[Any]] = []
        samples: list[Sample] = []
        for image, sample in self._read(workers, margin, prepare):
            images.append(image)
            samples.append(sample)
            if len(images) == batch:
                yield Batch(np.stack(images), samples)
                images, samples = [], []
        if images:
            yield Batch(np.stack(images), samples)

    def _read(
        self, workers: int, margin: float, prepare: Prepare
    ) -> Iterator[tuple[NDArray[Any], Sample]]:
        # One job a file, so that a video is decoded once for its neighbouring samples.
        jobs = [list(group) for _, group in groupby(self.samples, lambda sample: sample.path)]
        if workers == 0:
            results: Iterator[_Read] = (_load(job, margin, prepare) for job in jobs)
        else:
            results = _ahead(workers, [(job, margin, prepare) for job in jobs])
        for found, problems in results:
            self.report.update(problems)
            yield from found


_Read = tuple[list[tuple[NDArray[Any], Sample]], list[Problem]]


def _ahead(workers: int, jobs: list[Any]) -> Iterator[_Read]:
    pending: deque[Future[_Read]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(_load, *job))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _resizer(size: int) -> Prepare:
    if size < 1:
        raise ValueError(f"size: found {size}, accepted: at least 1")

    def resize(image: ByteImage) -> ByteImage:
        if image.shape[:2] == (size, size):
            return image
        mode = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
        return np.ascontiguousarray(cv2.resize(image, (size, size), interpolation=mode), np.uint8)

    return resize


def _load(
    job: list[Sample], margin: float, prepare: Prepare
) -> tuple[list[tuple[NDArray[Any], Sample]], list[Problem]]:
    """Read the samples of one file."""
    found: list[tuple[NDArray[Any], Sample]] = []
    problems: list[Problem] = []
    path = job[0].path
    if job[0].frame < 0:
        try:
            image = prepare(read_image(path))
        except (ValueError, cv2.error) as error:
            kind = "broken image" if path.exists() else "missing file"
            detail = str(error).removeprefix(f"{path}: ")
            return [], [Problem(kind, sample.key, detail) for sample in job]
        return [(image, sample) for sample in job], []
    wanted = {sample.frame: sample for sample in job}
    read = set()
    for index, frame in frames_at(path, list(wanted)):
        read.add(index)
        crop = largest_face(frame, margin)
        if crop is None:
            problems.append(Problem("no face", wanted[index].key))
        else:
            found.append((prepare(crop), wanted[index]))
    for index, sample in wanted.items():
        if index not in read:
            problems.append(Problem("broken video", sample.key, "the frame cannot be decoded"))
    return found, problems


def open_dataset(
    root: Path,
    name: str = FOLDER,
    split: str | None = "test",
    compression: str = "c23",
    frames: int | None = None,
) -> Dataset:
    """Return a data set below ``root``, in a fixed order.

    ``name`` is one of :data:`NAMES`; ``folder`` means ``real`` and ``fake``. ``split`` is
    ``train``, ``val``, ``test`` or None for all; ``compression`` ``raw``, ``c23`` or ``c40``,
    where the data set comes in several; ``frames`` the frames of a video, all when None. Raises
    ``ValueError`` that names the argument or file, also when nothing is left to look at.
    """
    if name not in NAMES:
        raise ValueError(f"dataset: found {name!r}, accepted: {', '.join(NAMES)}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: found {split!r}, accepted: {', '.join(SPLITS)}")
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression: found {compression!r}, accepted: {', '.join(COMPRESSIONS)}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames: found {frames}, accepted: at least 1")
    if not root.is_dir():
        raise ValueError(f"data: found {root}, which is no folder; accepted: a folder")
    report = Report()
    if name == FOLDER:
        if not is_plain(root):
            raise ValueError(f"{root}: found no folders 'real' and 'fake'")
        samples = read_folder(root, split, frames, report)
    elif find_json(root, name) is not None:
        samples = read_benchmark(root, name, split, compression, frames, report)
    else:
        from defakeq.data.tree import read_tree

        samples = read_tree(root, name, split, compression, frames, report)
    if not samples:
        counts = ", ".join(f"{count} x {kind}" for kind, count in report.counts().items())
        raise ValueError(
            f"{root}: found no sample of {name}, split {split or 'any'}"
            + (f" ({counts})" if counts else "")
        )
    samples.sort(key=lambda sample: (sample.split, sample.label, sample.name, sample.frame))
    return Dataset(name, samples, report)
