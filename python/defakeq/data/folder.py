"""Reads plain folders: ``real`` and ``fake``, of pictures, of folders of frames, or of videos.

Both may lie in a folder named as a split (``train``, ``val``, ``test``). A picture directly in
``real`` or ``fake`` is a video of its own; pictures in a folder below are one video's frames. Below
``fake``, the outermost of two or more folders is the forgery family.
"""

from __future__ import annotations

import os
from pathlib import Path

from defakeq.data.benchmark import frame_order, spread
from defakeq.data.labels import FAKE, REAL, SPLITS
from defakeq.data.report import Report
from defakeq.data.sample import Sample
from defakeq.data.video import count_frames
from defakeq.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_CLASSES = {"real": REAL, "fake": FAKE}


def _classes(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.lower() in _CLASSES:
            found.setdefault(path.name.lower(), path)
    return found


def is_plain(root: Path) -> bool:
    """Return whether a folder has ``real`` or ``fake`` in it, or in a split's folder."""
    return any(_classes(root / split) for split in ("", *SPLITS))


def read_folder(root: Path, split: str | None, frames: int | None, report: Report) -> list[Sample]:
    """Return the samples of a plain folder; problems go to ``report``.

    Without folders for splits, every sample belongs to whichever split is asked for. Raises
    ``ValueError`` when ``real`` or ``fake`` is missing.
    """
    parts = {name: _classes(root / name) for name in SPLITS if _classes(root / name)}
    if not parts:
        parts = {split or "test": _classes(root)}
    chosen = {name: found for name, found in parts.items() if split in (None, name)}
    if not chosen:
        raise ValueError(f"split: found {split!r}, accepted in {root}: {', '.join(parts)}")
    samples: list[Sample] = []
    for part, classes in chosen.items():
        for needed in _CLASSES:
            if needed not in classes:
                raise ValueError(
                    f"{root}: found no folder {needed!r} for the split {part!r}; accepted is "
                    "'real' and 'fake', or neither where labels are not needed"
                )
        for label, folder in classes.items():
            samples.extend(_read_class(root, part, label, folder, frames, report))
    _compare_splits(parts, report)
    return samples


def _videos(folder: Path, report: Report | None) -> dict[str, list[Path]]:
    """Return the pictures of every video by its path below ``folder``; videos are one file."""
    videos: dict[str, list[Path]] = {}
    for where, folders, names in os.walk(folder):
        folders.sort()
        pictures = [Path(where) / name for name in names]
        kept = [path for path in pictures if path.suffix.lower() in IMAGE_SUFFIXES]
        films = [path for path in pictures if path.suffix.lower() in VIDEO_SUFFIXES]
        below = Path(where).relative_to(folder)
        if Path(where) == folder:
            videos.update({path.name: [path] for path in kept})
        elif kept:
            videos[below.as_posix()] = sorted(kept, key=lambda path: frame_order(path.name))
        elif not films and not folders and report is not None:
            report.add("empty video", (folder.name / below).as_posix(), "no pictures")
        videos.update({(below / path.name).as_posix(): [path] for path in films})
    return dict(sorted(videos.items()))


def _read_class(
    root: Path, part: str, label: str, folder: Path, frames: int | None, report: Report
) -> list[Sample]:
    samples: list[Sample] = []
    for video, files in _videos(folder, report).items():
        pieces = video.split("/")
        family = pieces[0] if len(pieces) > 1 and label == "fake" else label
        about = (_CLASSES[label], family, f"{label}/{video}", part)
        name = files[0].relative_to(root).as_posix()
        if files[0].suffix.lower() in VIDEO_SUFFIXES:
            try:
                total = count_frames(files[0])
            except ValueError as error:
                report.add("broken video", name, error)
                continue
            if total == 0:
                report.add("empty video", name, "no frames")
            samples.extend(
                Sample(name, files[0], *about, frame=index) for index in spread(total, frames)
            )
            continue
        for index in spread(len(files), frames):
            samples.append(Sample(files[index].relative_to(root).as_posix(), files[index], *about))
    return samples


def _compare_splits(parts: dict[str, dict[str, Path]], report: Report) -> None:
    places: dict[str, set[str]] = {}
    if len(parts) > 1:
        for part, classes in parts.items():
            for label, folder in classes.items():
                for video in _videos(folder, None):
                    places.setdefault(f"{label}/{video}", set()).add(part)
    for video, found in places.items():
        if len(found) > 1:
            where = ", ".join(part for part in SPLITS if part in found)
            report.add("video in two splits", video, where)
