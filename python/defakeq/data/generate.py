"""Makes miniature data sets in the layouts of the public ones.

They stand in for data that only its owners may hand out: what reads, evaluates and compares runs on
them, with five families of forgeries whose traces differ. A detector's figures on them say nothing
about its figures on the data set whose layout they have. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.data.degrade import COMPRESSION, DEGRADATIONS, parse, video
from defakeq.data.forgeries import FAMILIES
from defakeq.data.labels import BENCHMARKS, COMPRESSIONS, FF_FOLDERS, SPLITS
from defakeq.data.sources import Person, people, shoot
from defakeq.embedded.data import to_bytes

ByteImage = NDArray[np.uint8]
FloatImage = NDArray[np.float32]

# Which family stands for which label; those of FaceForensics++'s subsets are all five.
FAMILY_OF: dict[str, str] = {
    "FF-DF": "blend",
    "FF-F2F": "warp",
    "FF-FS": "resample",
    "FF-NT": "upsample",
    "FF-FH": "diffuse",
    "DFD_fake": "blend",
    "CelebDFv1_fake": "resample",
    "CelebDFv2_fake": "warp",
    "DFDC_Fake": "upsample",
    "DFDCP_FakeA": "diffuse",
    "DFDCP_FakeB": "diffuse",
}
GENERATED = (*(name for name in BENCHMARKS if not name.startswith("FF-")), "folder")
MANIFEST = "generated.json"


@dataclass(frozen=True)
class Options:
    """What to make: ``count`` real videos a split, each of ``frames`` pictures of ``size`` squared.

    Every label of a forgery gets as many videos as the real one. ``compressions`` apply to the data
    sets that come in several; ``degrade`` are further steps as ``kind:strength``. ``skimage`` adds
    photographs of an installed scikit-image as backgrounds, ``films`` writes films (Motion JPEG)
    in place of pictures, in the layout ``folder``.
    """

    dataset: str
    count: int = 8
    seed: int = 0
    frames: int = 4
    size: int = 128
    splits: tuple[str, ...] = SPLITS
    compressions: tuple[str, ...] = ("c23",)
    degrade: tuple[str, ...] = ()
    families: tuple[str, ...] = tuple(FAMILIES)
    skimage: bool = False
    films: bool = False

    def check(self) -> None:
        """Raise ``ValueError`` that names the first argument that cannot be."""
        for name, value, accepted in (
            ("dataset", (self.dataset,), GENERATED),
            ("splits", self.splits, SPLITS),
            ("compressions", self.compressions, COMPRESSIONS),
            ("families", self.families, tuple(FAMILIES)),
        ):
            wrong = [item for item in value if item not in accepted]
            if wrong or not value:
                found = repr(wrong[0]) if wrong else "none"
                raise ValueError(f"{name}: found {found}, accepted: {', '.join(accepted)}")
        for name, number, low, high in (
            ("count", self.count, 1, 900),
            ("frames", self.frames, 1, 1000),
            ("size", self.size, 48, 1024),
            ("seed", self.seed, 0, 2**31 - 1),
        ):
            if not low <= number <= high:
                raise ValueError(f"{name}: found {number}, accepted: {low} to {high}")
        if self.films and self.dataset != "folder":
            raise ValueError(f"films: found {self.dataset!r}, accepted: the data set 'folder'")
        for text in self.degrade:
            parse(text)


@dataclass(frozen=True)
class Video:
    """A video to be written: its name and folder, whose face it shows and what is done to it."""

    split: str
    label: str
    family: str  # empty for a real one
    name: str
    folder: str  # of its frames, with {compression} where there are several
    person: int


def _seed(*parts: object) -> list[int]:
    return [zlib.crc32(str(part).encode()) for part in parts]


def _names(options: Options) -> Iterator[Video]:
    """Yield the videos of a data set, in the order in which they are written."""
    first = 0
    for split in options.splits:
        for person in range(options.count):
            other = person + 1 if person % 2 == 0 else person - 1
            if other >= options.count:
                other = max(0, person - 1)
            yield from _videos_of(options, split, first, person, other)
        first += options.count


def _videos_of(
    options: Options, split: str, first: int, person: int, other: int
) -> Iterator[Video]:
    name, me, you = options.dataset, first + person, first + other
    if name == "folder":
        yield Video(split, "real", "", f"{me:03d}", f"{split}/real/{me:03d}", person)
        for family in options.families:
            video = f"{me:03d}_{family}"
            yield Video(split, "fake", family, video, f"{split}/fake/{family}/{video}", person)
        return
    for label in BENCHMARKS[name].labels:
        family = FAMILY_OF.get(label, "")
        if name in ("FaceForensics++", "FaceShifter"):
            video = f"{me:03d}_{you:03d}" if family else f"{me:03d}"
            folder = f"FaceForensics++/{FF_FOLDERS[label]}/{{compression}}/frames/{video}"
        elif name == "DeepFakeDetection":
            video = f"{me:02d}_{you:02d}__talking" if family else f"{me:02d}__talking"
            folder = f"FaceForensics++/{FF_FOLDERS[label]}/{{compression}}/frames/{video}"
        elif name.startswith("Celeb"):
            video = f"id{me}_id{you}_0000" if family else f"id{me}_0000"
            place = "Celeb-synthesis" if family else "Celeb-real"
            if not family and person % 4 == 3:
                video, place = f"{me:05d}", "YouTube-real"
            folder = f"{name}/{place}/frames/{video}"
        elif name == "DFDC":
            rng = np.random.default_rng(_seed(name, label, me, options.seed))
            video = "".join(chr(97 + letter) for letter in rng.integers(0, 26, 10))
            place = "test" if split == "test" else f"train/dfdc_train_part_{int(split == 'val')}"
            folder = f"DFDC/{place}/frames/{video}"
        else:
            index = {"": "original_videos", "DFDCP_FakeA": "method_A", "DFDCP_FakeB": "method_B"}
            place = index[label if family else ""]
            two = f"{1000 + me}_{1000 + you}" if family else f"{1000 + me}"
            video = f"{two}_{label[-1] if family else 'C'}_001"
            folder = f"DFDCP/{place}/frames/{video}"
        yield Video(split, label, family, video, folder, person)


def render(options: Options, item: Video, person: Person) -> list[FloatImage]:
    """Return a video's frames before compression, float32 RGB, 0 to 1."""
    # Real and forged videos of a person are shot anew: they share no noise and no framing.
    key = (options.dataset, options.seed, item.label, item.split, item.name)
    rng = np.random.default_rng(_seed(*key))
    shots = list(shoot(rng, person.base, options.frames, options.size))
    if not item.family:
        return [image for image, _ in shots]
    grain = np.random.default_rng(_seed(*key, "grain"))
    return [
        FAMILIES[item.family](np.random.default_rng(_seed(*key, "look")), grain, image, outline)
        for image, outline in shots
    ]


def _compressed(
    options: Options, item: Video, frames: list[FloatImage], compression: str
) -> list[ByteImage]:
    rng = np.random.default_rng(_seed(options.dataset, options.seed, item.folder, "degrade"))
    for text in options.degrade:
        kind, strength = parse(text)
        frames = DEGRADATIONS[kind](rng, frames, strength)
    if compression and COMPRESSION[compression]:
        frames = video(rng, frames, COMPRESSION[compression])
    return [to_bytes(np.asarray(frame, np.float32)) for frame in frames]


def _write(path: Path, image: ByteImage) -> None:
    ok, code = cv2.imencode(".png", image[..., ::-1])
    if not ok:
        raise RuntimeError(f"{path}: OpenCV cannot write PNG")
    path.write_bytes(code.tobytes())


def _write_film(path: Path, frames: Sequence[ByteImage]) -> None:
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, 25, (width, height))
    if not writer.isOpened():
        raise RuntimeError(f"{path}: OpenCV cannot write Motion JPEG")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def _dump(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def generate(out: Path, options: Options) -> dict[str, Any]:
    """Write a miniature data set below ``out``; return its manifest, which is written too.

    Frames lie in ``out/rgb``, JSON files in ``out/dataset_json``; plain folders directly in
    ``out``. Raises ``ValueError`` for arguments that cannot be, or when the data set is there.
    """
    options.check()
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: found {out}, which is no folder")
    name = options.dataset
    manifest_path = out / (MANIFEST if name == "folder" else f"dataset_json/{name}.{MANIFEST}")
    if manifest_path.exists():
        raise ValueError(f"out: found {manifest_path}, accepted: a folder without this data set")
    compressed = name != "folder" and BENCHMARKS[name].compressed
    levels = options.compressions if compressed else ("",)
    cast = {
        split: list(people(split, options.count, options.seed, name, options.skimage))
        for split in options.splits
    }
    document: dict[str, Any] = {}
    written: dict[str, int] = {}
    for item in _names(options):
        frames = render(options, item, cast[item.split][item.person])
        for level in levels:
            images = _compressed(options, item, frames, level)
            folder = item.folder.format(compression=level)
            written[item.label] = written.get(item.label, 0) + len(images)
            if options.films:
                _write_film(out / f"{folder}.avi", images)
                continue
            place = out / folder if name == "folder" else out / "rgb" / folder
            place.mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(images):
                _write(place / f"{index:03d}.png", image)
            splits = document.setdefault(item.label, {split: {} for split in SPLITS})
            videos = splits[item.split].setdefault(level, {}) if level else splits[item.split]
            names = [f"{folder}/{index:03d}.png" for index in range(len(images))]
            videos[item.name] = {"label": item.label, "frames": names}
    if name != "folder":
        _write_lists(out, options, document)
    manifest = {
        "dataset": name,
        "note": "Made by defakeq data generate; not the data set whose layout it has.",
        "options": {
            field: list(value) if isinstance(value, tuple) else value
            for field, value in vars(options).items()
        },
        "families": {label: FAMILY_OF.get(label, "real") for label in document if name != "folder"}
        or {family: family for family in options.families},
        "sources": {split: [person.source for person in cast[split]] for split in cast},
        "pictures": written,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }
    _dump(manifest_path, manifest)
    return manifest


def _write_lists(out: Path, options: Options, document: dict[str, Any]) -> None:
    """Write DeepfakeBench's JSON and the lists that the data set itself has."""
    name = options.dataset
    _dump(out / "dataset_json" / f"{name}.json", {name: document})
    folder = out / "rgb" / BENCHMARKS[name].within
    if name in ("FaceForensics++", "FaceShifter"):
        for label in BENCHMARKS[name].labels[1:] if name == "FaceForensics++" else ():
            part = {key: document[key] for key in ("FF-real", label)}
            _dump(out / "dataset_json" / f"{label}.json", {label: part})
        fake = document[BENCHMARKS[name].labels[1]]
        for split in SPLITS:
            found: dict[str, Any] = next(iter(fake[split].values()), {})
            pairs = sorted({tuple(sorted(video.split("_"))) for video in found})
            _dump(folder / f"{split}.json", [list(pair) for pair in pairs])
    elif name.startswith("Celeb"):
        lines = []
        for label, splits in document.items():
            for entry in splits["test"].values():
                place, _, video = entry["frames"][0].split("/")[1:4]
                lines.append(f"{int(label.endswith('real'))} {place}/{video}.mp4")
        (folder / "List_of_testing_videos.txt").write_text("\n".join(sorted(lines)) + "\n")
    elif name == "DFDC":
        rows = ["filename,label"]
        metadata: dict[str, dict[str, Any]] = {}
        for label, splits in document.items():
            for split, videos in splits.items():
                for video in videos:
                    fake = label == "DFDC_Fake"
                    if split == "test":
                        rows.append(f"{video}.mp4,{int(fake)}")
                    else:
                        part = metadata.setdefault(f"dfdc_train_part_{int(split == 'val')}", {})
                        part[f"{video}.mp4"] = {"label": "FAKE" if fake else "REAL"}
        if len(rows) > 1:
            (folder / "test" / "labels.csv").write_text("\n".join(rows) + "\n")
        for place, files in metadata.items():
            _dump(folder / "train" / place / "metadata.json", files)
    elif name == "DFDCP":
        listed = {}
        for label, splits in document.items():
            for split, videos in splits.items():
                for video, entry in videos.items():
                    place = entry["frames"][0].split("/")[1]
                    kind = "real" if label == "DFDCP_Real" else "fake"
                    listed[f"{place}/{video}.mp4"] = {"label": kind, "set": split}
        _dump(folder / "dataset.json", listed)
