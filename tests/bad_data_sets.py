"""Bad input of ``defakeq evaluate``: a small good data set, and changes that spoil it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch
from typer.testing import CliRunner


def run(*arguments):
    from defakeq.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Case:
    """A small FF-DF data set: two real and two forged videos of two frames."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.arguments: list = []
        self.data = root / "data"
        self.document: dict = {"FF-DF": {}}
        for label, folder, names in (
            ("FF-real", "original_sequences/youtube", ("000", "001")),
            ("FF-DF", "manipulated_sequences/Deepfakes", ("000_001", "001_000")),
        ):
            for name in names:
                where = f"FaceForensics++/{folder}/c23/frames/{name}"
                self.picture(f"{where}/0.png", 40)
                self.picture(f"{where}/1.png", 200)
                videos = self.document["FF-DF"].setdefault(label, {"test": {"c23": {}}})
                frames = [f"{where}/{index}.png" for index in range(2)]
                videos["test"]["c23"][name] = {"label": label, "frames": frames}

    def picture(self, name: str, value: int) -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((32, 32, 3), value, np.uint8)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        return path

    @property
    def real(self) -> dict:
        return self.document["FF-DF"]["FF-real"]["test"]["c23"]

    @property
    def frame(self) -> Path:
        return self.data / self.real["000"]["frames"][0]

    def text(self, text: str | bytes) -> None:
        self.document = None  # type: ignore[assignment]
        data = text if isinstance(text, bytes) else text.encode()
        (self.data / "FF-DF.json").write_bytes(data)

    def plain(self) -> None:
        self.picture("real/r.png", 10)
        self.picture("fake/f.png", 250)
        self.arguments += ["--dataset", "folder"]

    def file(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def run(self, model: str | None = None):
        if self.document is not None:
            (self.data / "FF-DF.json").write_text(json.dumps(self.document))
        arguments = list(self.arguments)
        if "--dataset" not in arguments:
            arguments += ["--dataset", "FF-DF"]
        if "--data" not in arguments:
            arguments += ["--data", self.data]
        if "MODEL" in arguments:
            at = arguments.index("MODEL")
            model = arguments[at + 1]
            del arguments[at : at + 2]
        first = [model or "user_detectors:Mean"]
        out = ["--json", self.root / "out.json"] if "--json" not in arguments else []
        return run("evaluate", *first, *arguments, "--repeats=2", "--quiet", *out)


def no_data(c):
    shutil.rmtree(c.data)
    c.document = None


def data_is_file(c):
    no_data(c)
    c.data.write_bytes(b"x")


def empty_folder(c):
    no_data(c)
    c.data.mkdir()


def empty_plain(c):
    empty_folder(c)
    c.arguments += ["--dataset", "folder"]


def option(*values):
    return lambda c: c.arguments.extend(values)


def json_text(text):
    return lambda c: c.text(text)


def entry(key, value):
    def change(c):
        c.real["000"][key] = value

    return change


def content(data):
    return lambda c: c.frame.write_bytes(data if data is not None else c.frame.read_bytes()[:50])


def picture_is_folder(c):
    c.frame.unlink()
    c.frame.mkdir()


def all_pictures(data):
    def change(c):
        for path in c.data.rglob("*.png"):
            path.write_bytes(data) if data else path.unlink()

    return change


def unreadable_chunk_folder(c):
    c.arguments += ["--resume", c.file("taken", b"x")]


def film_case(name, data, label="fake"):
    def change(c):
        c.plain()
        c.file(f"data/{label}/{name}", data)

    return change


def film(path, frames):
    height, width = frames[0].shape[:2]
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, 25, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def blank_film(c):
    c.plain()
    film(c.data / "fake" / "blank.avi", [np.zeros((64, 64, 3), np.uint8)] * 2)


def cut_film(c):
    blank_film(c)
    path = c.data / "fake" / "blank.avi"
    path.write_bytes(path.read_bytes()[:200])


def empty_video_folder(c):
    c.plain()
    (c.data / "fake" / "video").mkdir()


def no_fake(c):
    c.plain()
    shutil.rmtree(c.data / "fake")


def same_plain_video(c):
    c.arguments += ["--dataset", "folder"]
    for split in ("train", "test"):
        for label in ("real", "fake"):
            c.picture(f"{split}/{label}/a.png", 9)


def tree(dataset, files):
    def change(c):
        empty_folder(c)
        c.arguments += ["--dataset", dataset]
        for name, text in files.items():
            c.file(f"data/{name}", text.encode())

    return change


def twice(c):
    c.real["001"]["frames"] = c.real["000"]["frames"]


def train_too(c):
    video = c.real["000"]
    c.document["FF-DF"]["FF-real"]["train"] = {"c23": {"000": video}}


def checkpoint(value):
    def change(c):
        path = c.root / "weights.pth"
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path)
        c.arguments += ["--float-model", path, "--builder", "user_detectors:Mean"]

    return change


def put(where, value):
    def change(c):
        place = c.document["FF-DF"]
        for key in where[:-1]:
            place = place[key]
        place[where[-1]] = value

    return change


def directory_out(c):
    (c.root / "out").mkdir()
    c.arguments += ["--json", c.root / "out"]


def file_for_folder(c):
    c.arguments += ["--csv", c.file("plain", b"x") / "e.csv"]


def rank(number, size):
    def change(c):
        os.environ.update(RANK=number, WORLD_SIZE=size)

    return change


CELEB = "Celeb-DF-v2"
# (name, change, "error" or the problem's kind, what stderr or the problem's name has)
BAD = [
    # the folder and the arguments
    ("no folder", no_data, "error", "data: found .*, which is no folder"),
    ("data is a file", data_is_file, "error", "data: found .*, which is no folder"),
    ("no --data", lambda c: c.arguments.extend(["--data", ""]), "error", "found no FF-DF|neither"),
    ("empty folder", empty_folder, "error", "found neither FF-DF.json nor a folder"),
    ("empty plain folder", empty_plain, "error", "found no folders 'real' and 'fake'"),
    ("unknown data set", option("--dataset", "FFpp"), "error", "dataset: found 'FFpp'"),
    ("data set twice", option("--dataset", "DFDC", "--dataset", "DFDC"), "error", "one twice"),
    ("unknown split", option("--split", "dev"), "error", "split: found 'dev'"),
    ("absent split", option("--split", "val"), "error", "found no sample of FF-DF, split val"),
    ("unknown compression", option("--compression", "c1"), "error", "compression: found 'c1'"),
    ("absent compression", option("--compression", "c40"), "error", "compression: found 'c40'"),
    ("no frames", option("--frames", "0"), "error", "frames: found 0"),
    ("no batch", option("--batch", "0"), "error", "batch: found 0"),
    ("negative workers", option("--workers", "-1"), "error", "workers: found -1"),
    ("no chunk", option("--chunk", "0"), "error", "chunk: found 0"),
    ("output is a folder", directory_out, "error", "out: cannot be written"),
    ("output is a device", option("--json", "/dev/full"), "error", "it is no ordinary file"),
    ("folder of the output is a file", file_for_folder, "error", "e.csv: cannot be written"),
    ("chunks' folder is a file", unreadable_chunk_folder, "error", "taken"),
    ("rank is no number", rank("one", "2"), "error", "RANK: found 'one'"),
    ("rank beyond the world", rank("2", "2"), "error", "RANK: found 2"),
    # the lists
    ("empty JSON", json_text(""), "error", "FF-DF.json: found no JSON"),
    ("cut JSON", json_text('{"FF-DF": {'), "error", r"FF-DF.json: found no JSON .*line 1"),
    ("no UTF-8", json_text(b'{"\xff\xfe": 1}'), "error", "FF-DF.json: found no UTF-8"),
    ("JSON too deep", json_text("[" * 200_000), "error", "FF-DF.json: found JSON nested"),
    ("JSON is a list", json_text("[]"), "error", "FF-DF.json: found list"),
    ("JSON of another", json_text('{"DFDC": {}}'), "error", "found 'DFDC', accepted: 'FF-DF'"),
    ("data set is a list", json_text('{"FF-DF": []}'), "error", "FF-DF: found list"),
    ("label is a list", put(["FF-DF"], []), "error", "FF-DF/FF-DF: found list"),
    ("unknown label", put(["FF-XX"], {}), "unknown label", "FF-DF/FF-XX"),
    ("unknown label of a video", entry("label", "XX"), "unknown label", "c23/000"),
    ("label is no text", entry("label", ["FF-real"]), "unknown label", "c23/000"),
    ("unknown split of a label", put(["FF-DF", "dev"], {}), "unknown split", "FF-DF/dev"),
    ("split is a list", put(["FF-DF", "val"], []), "malformed entry", "FF-DF/val"),
    ("unknown level", put(["FF-DF", "test", "c9"], {}), "malformed entry", "test/c9"),
    ("video is text", put(["FF-DF", "test", "c23", "x"], "x"), "malformed entry", "c23/x"),
    ("frames is text", entry("frames", "a.png"), "malformed entry", "c23/000"),
    ("frame is a number", entry("frames", [3]), "malformed entry", "c23/000"),
    ("no frames in a video", entry("frames", []), "empty video", "c23/000"),
    ("missing frame", lambda c: c.frame.unlink(), "missing file", "000/0.png"),
    ("missing folder", lambda c: shutil.rmtree(c.frame.parent), "missing file", "000/1.png"),
    ("path leads nowhere", entry("frames", ["/none/a.png"]), "missing file", "/none/a.png"),
    ("null in a path", entry("frames", ["a\0.png"]), "missing file", "a"),
    ("same frames twice", twice, "duplicate frame", "000/0.png"),
    ("video in two splits", train_too, "video in two splits", "FF-real/000"),
    ("person in two splits", train_too, "identity in two splits", "000"),
    ("all frames missing", all_pictures(b""), "error", "found no sample .*missing file"),
    # the pictures
    ("empty picture", content(b""), "broken image", "000/0.png"),
    ("cut picture", content(None), "broken image", "000/0.png"),
    ("text as a picture", content(b"no picture"), "broken image", "000/0.png"),
    ("folder as a picture", picture_is_folder, "broken image", "000/0.png"),
    ("all pictures broken", all_pictures(b"x"), "error", "found no picture that can be read"),
    # plain folders and films
    ("no folder of forgeries", no_fake, "error", "found no folder 'fake'"),
    ("empty folder of a video", empty_video_folder, "empty video", "fake/video"),
    ("plain video in two splits", same_plain_video, "video in two splits", "real/a.png"),
    ("empty film", film_case("a.mp4", b""), "broken video", "fake/a.mp4"),
    ("text as a film", film_case("a.avi", b"no film" * 99), "broken video", "fake/a.avi"),
    ("cut film", cut_film, "broken video", "fake/blank.avi"),
    ("film without a face", blank_film, "no face", "fake/blank.avi#0"),
    # the data sets' own lists
    ("no pairs", tree("FF-DF", {"original_sequences/x": ""}), "error", "train.json: no such file"),
    (
        "pairs are text",
        tree("FF-DF", {"original_sequences/x": "", "train.json": '["a"]'}),
        "error",
        "train.json: found another structure",
    ),
    ("no list of tests", tree(CELEB, {"Celeb-real/x": ""}), "error", "List_of_testing_videos.txt"),
    ("odd list of videos", tree("DFDCP", {"dataset.json": "[]"}), "error", "found no list"),
    ("empty labels", tree("DFDC", {"test/labels.csv": ""}), "error", "found no sample of DFDC"),
    (
        "labels of nothing",
        tree("DFDC", {"test/labels.csv": "filename,label\na.mp4,7\n"}),
        "error",
        "1 x unknown label",
    ),
    # the models
    ("no model file", option("MODEL", "none.dfq"), "error", "model: found none.dfq"),
    (
        "text as a model",
        lambda c: c.arguments.extend(["MODEL", str(c.file("a.dfq", b"x" * 99))]),
        "error",
        r"model: found .*a\.dfq",
    ),
    ("no such module", option("MODEL", "no_such_module:build"), "error", "cannot be imported"),
    ("no such function", option("MODEL", "user_detectors:none"), "error", "cannot be imported"),
    ("function of a number", option("MODEL", "user_detectors:number"), "error", "returned int"),
    ("function that fails", option("MODEL", "user_detectors:unready"), "error", r"Key.*\.py, line"),
    ("two inputs", option("MODEL", "user_detectors:Two"), "error", r"Two: TypeError.*\.py, line"),
    ("output of another shape", option("MODEL", "user_detectors:Wide"), "error", "an output of"),
    (
        "scores are no numbers",
        option("MODEL", "user_detectors:Broken"),
        "error",
        "found scores .* nan",
    ),
    ("scores above one", option("MODEL", "user_detectors:TooMuch"), "error", "found scores"),
    ("no float file", option("--float-model", "none.pth"), "error", "float-model: found none.pth"),
    ("text as a checkpoint", checkpoint(b"x" * 99), "error", "weights.pth: no checkpoint"),
    ("numbers as a checkpoint", checkpoint([1, 2]), "error", "weights.pth: found no state dict"),
    ("checkpoint of another", checkpoint({"w": torch.ones(1)}), "error", "weights.pth: .*gain"),
    (
        "other preprocessing",
        option("--float-model", "user_detectors:Own"),
        "error",
        "preprocessing",
    ),
]
