"""Reads data sets as they are handed out, or with extracted frames, without DeepfakeBench's JSON.

Every video is a folder of pictures in ``frames``, or a film in ``videos`` or beside it. The splits
are those of the data set's own lists.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from defakeq.data.benchmark import read_document, read_json
from defakeq.data.labels import BENCHMARKS, COMPRESSIONS, FF_FOLDERS, SPLITS
from defakeq.data.report import Report
from defakeq.data.sample import Sample
from defakeq.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES

Document = dict[str, Any]


def _entries(folder: Path) -> dict[str, Document]:
    """Return the videos of a folder, by name: their frames, or the film."""
    found: dict[str, Document] = {}
    for place in (folder / "frames", folder / "videos", folder):
        if not place.is_dir():
            continue
        for path in sorted(place.iterdir()):
            if path.is_dir() and place.name == "frames":
                frames = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
                found[path.name] = {"frames": [str(frame) for frame in frames]}
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                found.setdefault(path.stem, {"frames": [], "film": str(path)})
    return found


def _put(document: Document, label: str, split: str, video: str, entry: Document) -> None:
    document.setdefault(label, {}).setdefault(split, {})[video] = {"label": label, **entry}


def _ff_splits(folder: Path) -> dict[str, str]:
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.json"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; accepted: the data set's list of pairs")
        pairs = read_json(path)
        shaped = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
            for pair in pairs
        )
        if not shaped:
            raise ValueError(f"{path}: found another structure, accepted: a list of pairs of names")
        for one, two in pairs:
            splits.update(dict.fromkeys((one, two, f"{one}_{two}", f"{two}_{one}"), split))
    return splits


def _face_forensics(root: Path, name: str, report: Report) -> Document:
    labels = BENCHMARKS[name].labels
    splits = {} if name == "DeepFakeDetection" else _ff_splits(root)
    document: Document = {}
    for label in labels:
        for compression in COMPRESSIONS:
            for video, entry in _entries(root / FF_FOLDERS[label] / compression).items():
                # DeepFakeDetection has no splits of its own: all of it is for tests.
                split = splits.get(video, "") if splits else "test"
                if not split:
                    report.add("unknown split", f"{label}/{compression}/{video}", "in no list")
                    continue
                levels = document.setdefault(label, {}).setdefault(split, {})
                levels.setdefault(compression, {})[video] = {"label": label, **entry}
    return document


def _celeb(root: Path, name: str, report: Report) -> Document:
    real, fake = BENCHMARKS[name].labels
    path = root / "List_of_testing_videos.txt"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; accepted: the data set's list of test videos")
    tests = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        pieces = line.split()
        if len(pieces) != 2 or pieces[0] not in ("0", "1") or "/" not in pieces[1]:
            report.add("malformed entry", f"{path.name}:{number}", line)
            continue
        tests.add(pieces[1].rpartition(".")[0])
    document: Document = {}
    met = set()
    for folder in ("Celeb-real", "YouTube-real", "Celeb-synthesis"):
        label = fake if folder == "Celeb-synthesis" else real
        for video, entry in _entries(root / folder).items():
            met.add(f"{folder}/{video}")
            split = "test" if f"{folder}/{video}" in tests else "train"
            _put(document, label, split, video, entry)
    for absent in sorted(tests - met):
        report.add("missing file", absent, f"named in {path.name}")
    return document


def _dfdc(root: Path, name: str, report: Report) -> Document:
    real, fake = BENCHMARKS[name].labels
    document: Document = {}
    path = root / "test" / "labels.csv"
    if path.is_file():
        videos = _entries(root / "test")
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                video = (row.get("filename") or "").rpartition(".")[0]
                if row.get("label") not in ("0", "1"):
                    report.add("unknown label", f"test/labels.csv:{number}", row.get("label"))
                elif video not in videos:
                    report.add("missing file", f"test/{row.get('filename')}", "in labels.csv")
                else:
                    label = fake if row["label"] == "1" else real
                    _put(document, label, "test", video, videos[video])
    for path in sorted((root / "train").glob("*/metadata.json")):
        metadata = read_json(path)
        if not isinstance(metadata, dict):
            raise ValueError(f"{path}: found {type(metadata).__name__}, accepted: an object")
        videos = _entries(path.parent)
        for file_name, row in metadata.items():
            where = f"{path.parent.name}/{file_name}"
            video = file_name.rpartition(".")[0]
            kind = row.get("label") if isinstance(row, dict) else None
            if kind not in ("REAL", "FAKE"):
                report.add("unknown label", where, repr(kind))
            elif video not in videos:
                report.add("missing file", where, "in metadata.json")
            else:
                _put(document, real if kind == "REAL" else fake, "train", video, videos[video])
    return document


def _dfdcp(root: Path, name: str, report: Report) -> Document:
    path = root / "dataset.json"
    rows = read_json(path) if path.is_file() else None
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: found no list of videos, accepted: the data set's dataset.json")
    document: Document = {}
    cache: dict[Path, dict[str, Document]] = {}
    for file_name, row in rows.items():
        folder = file_name.split("/")[0]
        kind = row.get("label") if isinstance(row, dict) else None
        labels = {"method_A": "DFDCP_FakeA", "method_B": "DFDCP_FakeB"}
        label = {"real": "DFDCP_Real", "fake": labels.get(folder)}.get(str(kind))
        if label is None:
            report.add("unknown label", file_name, repr(kind))
            continue
        if row.get("set") not in SPLITS:
            report.add("unknown split", file_name, repr(row.get("set")))
            continue
        video = Path(file_name).stem
        if root / folder not in cache:
            cache[root / folder] = _entries(root / folder)
        entry = cache[root / folder].get(video)
        if entry is None and (root / file_name).is_file():
            entry = {"frames": [], "film": str(root / file_name)}
        if entry is None:
            report.add("missing file", file_name, "in dataset.json")
        else:
            _put(document, label, row["set"], video, entry)
    return document


def read_tree(
    root: Path,
    name: str,
    split: str | None,
    compression: str,
    frames: int | None,
    report: Report,
) -> list[Sample]:
    """Return the samples of a data set's folder, ``root`` or below it; problems go to ``report``.

    Raises ``ValueError`` when there is neither such a folder nor a JSON file.
    """
    within = BENCHMARKS[name].within
    folders = (root / within, root / "rgb" / within, root / "datasets" / "rgb" / within, root)
    markers = {
        "FaceForensics++": ("original_sequences", "manipulated_sequences"),
        "Celeb-DF-v1": ("List_of_testing_videos.txt", "Celeb-real"),
        "Celeb-DF-v2": ("List_of_testing_videos.txt", "Celeb-real"),
        "DFDC": ("test/labels.csv", "train"),
        "DFDCP": ("dataset.json", "method_A"),
    }[within]
    readers = {
        "FaceForensics++": _face_forensics,
        "Celeb-DF-v1": _celeb,
        "Celeb-DF-v2": _celeb,
        "DFDC": _dfdc,
        "DFDCP": _dfdcp,
    }
    for folder in folders:
        if any((folder / marker).exists() for marker in markers):
            document = {name: readers[within](folder, name, report)}
            return read_document(folder, document, folder, name, split, compression, frames, report)
    raise ValueError(f"{root}: found neither {name}.json nor a folder of {name} ({markers[0]})")
