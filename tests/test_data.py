"""Readers of data sets: layouts, order, batches, and problems by name."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from defakeq.data import Dataset, Report, open_dataset
from defakeq.data.benchmark import frame_order, spread
from defakeq.data.labels import BENCHMARKS, LABELS
from defakeq.data.video import count_frames, frames_at

FOLDERS = {
    "FF-real": "FaceForensics++/original_sequences/youtube",
    "FF-DF": "FaceForensics++/manipulated_sequences/Deepfakes",
}


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((40, 50, 3), value, np.uint8)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def film(path: Path, count: int, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, 25, (size, size))
    for index in range(count):
        writer.write(np.full((size, size, 3), 20 * index, np.uint8))
    writer.release()


def benchmark(root: Path, videos: dict[str, dict[str, list[str]]], count: int = 3) -> dict:
    """Write FF-DF's JSON with backslashes, and its frames below rgb/."""
    document: dict = {"FF-DF": {}}
    value = 0
    for label, splits in videos.items():
        for split, names in splits.items():
            for name in names:
                frames = []
                for index in range(count):
                    frame = f"{FOLDERS[label]}/c23/frames/{name}/{index * 5}.png"
                    picture(root / "rgb" / frame, value := value + 1)
                    frames.append(frame.replace("/", "\\"))
                place = document["FF-DF"].setdefault(label, {}).setdefault(split, {})
                entry = {"label": label, "frames": frames[::-1]}
                place.setdefault("c23", {})[name] = entry
    (root / "preprocessing" / "dataset_json").mkdir(parents=True)
    (root / "preprocessing/dataset_json/FF-DF.json").write_text(json.dumps(document))
    return document


def test_deepfakebench_json(tmp_path):
    videos = {
        "FF-real": {"train": ["000"], "test": ["002", "003"]},
        "FF-DF": {"test": ["002_003", "003_002"]},
    }
    benchmark(tmp_path, videos)
    found = open_dataset(tmp_path, "FF-DF")
    assert not found.report
    assert [s.label for s in found.samples] == [0] * 6 + [1] * 6
    assert [s.video for s in found.samples[::3]] == [
        "FF-real/002",
        "FF-real/003",
        "FF-DF/002_003",
        "FF-DF/003_002",
    ]
    assert [s.name.rpartition("/")[2] for s in found.samples[:3]] == ["0.png", "10.png", "5.png"]
    assert found.samples[6].identities == ("002", "003")
    assert {s.compression for s in found.samples} == {"c23"}
    assert len(open_dataset(tmp_path, "FF-DF", split=None)) == 15
    fewer = open_dataset(tmp_path, "FF-DF", frames=2)
    assert [s.name.rpartition("/")[2] for s in fewer.samples[:2]] == ["0.png", "5.png"]


def test_batches_hold_every_picture_in_order(tmp_path):
    benchmark(tmp_path, {"FF-real": {"test": ["000"]}, "FF-DF": {"test": ["000_001"]}}, 5)
    found = open_dataset(tmp_path, "FF-DF")
    expected = [cv2.imread(str(sample.path))[0, 0, 0] for sample in found.samples]
    for workers in (0, 3):
        batches = list(found.batches(4, 16, workers))
        assert [len(batch.samples) for batch in batches] == [4, 4, 2]
        assert [s for batch in batches for s in batch.samples] == found.samples
        assert [int(i[0, 0, 0]) for batch in batches for i in batch.images] == expected
        assert batches[0].images.shape == (4, 16, 16, 3)
    assert np.concatenate([batch.labels for batch in batches]).tolist() == [0] * 5 + [1] * 5


def test_batch_as_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    benchmark(tmp_path, {"FF-real": {"test": ["000"]}})
    batch = next(open_dataset(tmp_path, "FF-DF").batches(2, 8))
    images, labels = batch.tensors()
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    assert float(images[0, 0, 0, 0]) == pytest.approx(batch.images[0, 0, 0, 0] / 255)
    assert labels.tolist() == [0, 0]


def test_people_in_two_splits_are_named_and_kept(tmp_path):
    videos = {
        "FF-real": {"train": ["000", "001"], "test": ["002", "001"]},
        "FF-DF": {"test": ["000_002"]},
    }
    benchmark(tmp_path, videos, 1)
    found = open_dataset(tmp_path, "FF-DF")
    assert len(found) == 3
    assert found.report.counts() == {"identity in two splits": 2, "video in two splits": 1}
    named = {problem.name: problem.detail for problem in found.report.problems}
    assert named["000"] == "train, test"
    assert set(named) == {"000", "001", "FF-real/001"}


@pytest.mark.parametrize(
    ("name", "label", "video", "people"),
    [
        ("FF-DF", "FF-DF", "012_345", ("012", "345")),
        ("FaceForensics++", "FF-real", "012", ("012",)),
        ("DeepFakeDetection", "DFD_fake", "02_01__walk_down_hall__AB12", ("01", "02")),
        ("DeepFakeDetection", "DFD_real", "09__talking", ("09",)),
        ("Celeb-DF-v2", "CelebDFv2_fake", "id3_id21_0004", ("id21", "id3")),
        ("Celeb-DF-v2", "CelebDFv2_real", "id3_0004", ("id3",)),
        ("Celeb-DF-v1", "CelebDFv1_real", "00042", ("00042",)),
        ("DFDCP", "DFDCP_FakeA", "1224068_1620642_A_001", ("1224068", "1620642")),
        ("DFDC", "DFDC_Fake", "abcdefghij", ()),
    ],
)
def test_people_in_names(name, label, video, people):
    assert BENCHMARKS[name].people(video, label) == people


def test_labels_of_all_benchmarks_are_known():
    for row in BENCHMARKS.values():
        assert {LABELS[label] for label in row.labels} == {0, 1}


def test_frames_are_spread_and_ordered():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, None) == spread(3, 7) == [0, 1, 2]
    assert sorted(["10.png", "9.png", "a1.png"], key=frame_order) == ["9.png", "10.png", "a1.png"]


def test_plain_folders(tmp_path):
    picture(tmp_path / "real" / "one.png", 1)
    picture(tmp_path / "Fake" / "gan" / "two" / "10.png", 2)
    picture(tmp_path / "Fake" / "gan" / "two" / "9.png", 3)
    picture(tmp_path / "Fake" / "three" / "0.png", 4)
    found = open_dataset(tmp_path)
    about = [(s.name, s.label, s.family, s.video) for s in found.samples]
    assert about == [
        ("real/one.png", 0, "real", "real/one.png"),
        ("Fake/gan/two/10.png", 1, "gan", "fake/gan/two"),
        ("Fake/gan/two/9.png", 1, "gan", "fake/gan/two"),
        ("Fake/three/0.png", 1, "fake", "fake/three"),
    ]


def test_plain_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        for label in ("real", "fake"):
            picture(tmp_path / split / label / "same.png", 1)
            picture(tmp_path / split / label / f"{split}.png", 2)
    found = open_dataset(tmp_path, split="train")
    assert {sample.split for sample in found.samples} == {"train"}
    assert len(found) == 4
    assert found.report.counts() == {"video in two splits": 2}
    with pytest.raises(ValueError, match=r"split: found 'val', accepted in .*: train, test"):
        open_dataset(tmp_path, split="val")


def test_films_are_cut_to_the_largest_face(tmp_path, monkeypatch):
    from defakeq.data import video

    film(tmp_path / "real" / "a.avi", 9)
    film(tmp_path / "fake" / "deep" / "b.avi", 4)
    assert count_frames(tmp_path / "real" / "a.avi") == 9
    found = open_dataset(tmp_path, frames=3)
    assert [s.frame for s in found.samples] == [0, 3, 6, 0, 1, 2]
    assert found.samples[0].key == "real/a.avi#0"
    decoded = dict(frames_at(tmp_path / "real" / "a.avi", [3, 6]))
    assert [round(frame.mean() / 20) for frame in decoded.values()] == [3, 6]
    assert list(found.batches(2, 16)) == []
    assert found.report.counts() == {"no face": 6}
    boxes = {0: [], 20: [(4.0, 4.0, 10.0, 10.0)]}
    monkeypatch.setattr(video, "find_faces", lambda image: boxes[20 if image.mean() > 10 else 0])
    again = open_dataset(tmp_path, frames=3)
    batch = next(again.batches(9, 16, 0))
    assert [sample.frame for sample in batch.samples] == [3, 6, 1, 2]
    assert again.report.counts() == {"no face": 2}


def test_report_does_not_depend_on_order():
    rows = [("missing file", "b", "x"), ("no face", "a", ""), ("missing file", "a", "two\nlines")]
    one, other = Report(), Report()
    for row in rows:
        one.add(*row)
    for row in reversed(rows):
        other.add(*row)
    other.add(*rows[0])
    assert one.to_dict() == other.to_dict()
    assert one.counts() == {"missing file": 2, "no face": 1}
    assert one.skipped == 3
    assert "\n" not in one.problems[0].line()
    assert Report.from_dict(one.to_dict()).to_dict() == one.to_dict()
    assert not Report()
    with pytest.raises(ValueError, match="kind: found 'odd'"):
        one.add("odd", "a")


def test_selection_keeps_the_samples():
    found = Dataset("folder", [])
    assert len(found.select([])) == 0
    assert list(found.batches()) == []
