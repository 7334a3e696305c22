"""Reads DeepfakeBench's data files: one JSON a data set, beside folders of extracted frames.

The JSON is ``{data set: {label: {split: {video: entry}}}}``, with one more level, the compression,
between split and video for FaceForensics++ and DeepFakeDetection; an entry is
``{"label": ..., "frames": [...]}``. Frame paths are absolute, or relative to the folder of the
frames (``rgb``), with slashes or backslashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from defakeq.data.labels import BENCHMARKS, COMPRESSIONS, LABELS, SPLITS
from defakeq.data.report import Report
from defakeq.data.sample import Sample
from defakeq.data.video import count_frames

# Where the JSON files and the frames lie below the folder that a user names.
JSON_FOLDERS = ("", "dataset_json", "preprocessing/dataset_json", "json")
FRAME_FOLDERS = ("", "rgb", "datasets/rgb", "datasets")

# A sample's label, family, video, split, compression and identities.
_About = tuple[int, str, str, str, str, tuple[str, ...]]


def find_json(root: Path, name: str) -> Path | None:
    """Return the JSON file of a data set below ``root``, or None."""
    for folder in JSON_FOLDERS:
        path = root / folder / f"{name}.json"
        if path.is_file():
            return path
    return None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ``ValueError`` that names file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: found no JSON ({error.msg} in line {error.lineno}), accepted: JSON"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found no UTF-8 text, accepted: JSON") from error
    except RecursionError as error:
        raise ValueError(f"{path}: found JSON nested too deeply") from error


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {type(value).__name__}, accepted: an object")
    return value


class _Frames:
    """Finds frame files; lists every folder once instead of asking for every file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[Path, frozenset[str]] = {}

    def names(self, folder: Path) -> frozenset[str]:
        if folder not in self.listed:
            try:
                self.listed[folder] = frozenset(path.name for path in folder.iterdir())
            except OSError:
                self.listed[folder] = frozenset()
        return self.listed[folder]

    def find(self, name: str) -> Path | None:
        path = Path(name)
        if path.is_absolute():
            candidates = [path]
        else:
            candidates = [self.root / folder / path for folder in FRAME_FOLDERS]
        for candidate in candidates:
            if candidate.name in self.names(candidate.parent):
                return candidate
        return None


def frame_order(name: str) -> tuple[Any, ...]:
    """Return a sorting key that puts ``10.png`` behind ``9.png``."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts), name


def spread(count: int, wanted: int | None) -> list[int]:
    """Return ``wanted`` of the indices below ``count``, evenly spread; all of them when None."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [index * count // wanted for index in range(wanted)]


def _videos(
    splits: dict[str, Any], where: str, compressed: bool, report: Report
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield (split, compression, video, entry) of one label."""
    for split, content in splits.items():
        here = f"{where}/{split}"
        if split not in SPLITS:
            report.add("unknown split", here, f"accepted: {', '.join(SPLITS)}")
            continue
        if not isinstance(content, dict):
            report.add("malformed entry", here, f"found {type(content).__name__}")
            continue
        levels = {"": content}
        if compressed:
            levels = {}
            for compression, videos in content.items():
                if compression not in COMPRESSIONS or not isinstance(videos, dict):
                    accepted = f"accepted: videos by compression, {', '.join(COMPRESSIONS)}"
                    report.add("malformed entry", f"{here}/{compression}", accepted)
                else:
                    levels[compression] = videos
        for compression, videos in levels.items():
            for video, entry in videos.items():
                name = "/".join(part for part in (here, compression, video) if part)
                if not isinstance(entry, dict) or not isinstance(entry.get("frames"), list):
                    report.add("malformed entry", name, "accepted: a label and a list of frames")
                    continue
                yield split, compression, video, entry


def _film(
    root: Path, path: Path, about: _About, frames: int | None, report: Report
) -> list[Sample]:
    name = path.relative_to(root).as_posix()
    try:
        total = count_frames(path)
    except ValueError as error:
        report.add("broken video", name, str(error).removeprefix(f"{path}: "))
        return []
    if total == 0:
        report.add("empty video", name, "no frames")
    return [Sample(name, path, *about, frame=index) for index in spread(total, frames)]


def read_benchmark(
    root: Path,
    name: str,
    split: str | None,
    compression: str,
    frames: int | None,
    report: Report,
) -> list[Sample]:
    """Return the samples of a benchmark's JSON below ``root``; problems go to ``report``.

    ``split`` None means all. Of each video ``frames`` frames are taken, evenly spread, or all. The
    people in the videos are compared over all splits, whichever is asked for. Raises ``ValueError``
    when there is no such file or it has another structure.
    """
    path = find_json(root, name)
    if path is None:
        raise ValueError(f"{root}: found no {name}.json, accepted: in it or in {JSON_FOLDERS[1]}/")
    document = read_json(path)
    return read_document(root, document, path, name, split, compression, frames, report)


def read_document(
    root: Path,
    document: Any,
    path: Path,
    name: str,
    split: str | None,
    compression: str,
    frames: int | None,
    report: Report,
) -> list[Sample]:
    """Return the samples of a document in DeepfakeBench's form. See :func:`read_benchmark`.

    ``path`` is named in errors. An entry may have the path of a video, ``film``, instead of frames.
    """
    document = _mapping(document, str(path))
    if name not in document:
        found = ", ".join(map(repr, list(document)[:5])) or "nothing"
        raise ValueError(f"{path}: found {found}, accepted: {name!r}")
    benchmark = BENCHMARKS[name]
    files = _Frames(root)
    samples: list[Sample] = []
    seen: set[tuple[str, str]] = set()
    places: dict[tuple[str, str], set[str]] = {}
    available: set[str] = set()
    for label, splits in _mapping(document[name], f"{path}: {name}").items():
        if label not in LABELS:
            report.add("unknown label", f"{name}/{label}", f"accepted: {', '.join(LABELS)}")
            continue
        splits = _mapping(splits, f"{path}: {name}/{label}")
        for part, level, video, entry in _videos(
            splits, f"{name}/{label}", benchmark.compressed, report
        ):
            where = "/".join(piece for piece in (name, label, part, level, video) if piece)
            own = entry.get("label", label)
            if not isinstance(own, str) or own not in LABELS:
                report.add("unknown label", where, repr(own))
                continue
            people = benchmark.people(video, own)
            for person in people:
                places.setdefault(("identity in two splits", person), set()).add(part)
            places.setdefault(("video in two splits", f"{own}/{video}"), set()).add(part)
            available.add(level)
            if (split is not None and part != split) or (level and level != compression):
                continue
            about: _About = (LABELS[own], own, f"{own}/{video}", part, level, people)
            if entry.get("film"):
                samples.extend(_film(root, Path(entry["film"]), about, frames, report))
                continue
            names = [frame for frame in entry["frames"] if isinstance(frame, str) and frame]
            for bad in entry["frames"]:
                if not isinstance(bad, str) or not bad:
                    report.add("malformed entry", where, f"a frame is {bad!r}")
            names = sorted((frame.replace("\\", "/") for frame in names), key=frame_order)
            if not names:
                report.add("empty video", where, "no frames")
                continue
            for index in spread(len(names), frames):
                frame = names[index]
                if (part, frame) in seen:
                    report.add("duplicate frame", frame, where)
                    continue
                seen.add((part, frame))
                file = files.find(frame)
                if file is None:
                    report.add("missing file", frame, where)
                    continue
                samples.append(Sample(frame, file, *about))
    for (kind, who), parts in places.items():
        if len(parts) > 1:
            report.add(kind, who, ", ".join(part for part in SPLITS if part in parts))
    if benchmark.compressed and available and compression not in available:
        raise ValueError(
            f"compression: found {compression!r}, accepted in {path}: "
            f"{', '.join(sorted(available))}"
        )
    return samples
