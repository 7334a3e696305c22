"""Bad input of the other commands: one clear line and exit code 2, or 1 for files passed over."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bad_data_sets import film, run  # noqa: E402

from defakeq.conversion import convert, save  # noqa: E402
from defakeq.embedded.data import PHOTOS  # noqa: E402
from defakeq.plan import QuantPlan  # noqa: E402

# (name, arguments, exit code, what stderr has). {tmp} is a folder with an empty
# file, a text that says to be a picture, a film and a model, and a film without a face; {photo} is
# a picture with a face, {net} a program.
OTHERS = [
    # detect: files that cannot be read are named and skipped, exit code 1
    ("picture that is not there", "detect {tmp}/none.jpg", 1, "none.jpg: no such file"),
    ("empty picture", "detect {tmp}/empty.jpg", 1, "empty.jpg: the file is empty"),
    ("text as a picture", "detect {tmp}/text.jpg", 1, "text.jpg: not a picture"),
    ("text as a film", "detect {tmp}/text.avi", 1, "text.avi: not a video"),
    ("folder of nothing", "detect {tmp}/nothing", 2, "nothing: found no picture or video"),
    ("text as a model", "detect {photo} --model {tmp}/text.dfq", 2, "model: found .*text.dfq"),
    ("no such module", "detect {photo} --model a.b:c", 2, "cannot be imported"),
    ("wide output", "detect {photo} --model user_detectors:Wide", 2, "found an output of"),
    # explain
    ("explain nothing", "explain {tmp}/none.jpg --out {tmp}/x.png", 2, "none.jpg: no such file"),
    ("explain text", "explain {tmp}/text.jpg --out {tmp}/x.png", 2, "text.jpg: not a picture"),
    ("explain a folder", "explain {tmp} --out {tmp}/x.png", 2, "not a file"),
    ("explain to JPEG", "explain {photo} --out {tmp}/x.jpg --cells 2", 2, "out: found .*x.jpg"),
    ("explain to nowhere", "explain {photo} --out {tmp}/no/x.png --cells 2", 2, "out: .*written"),
    ("explain a foreign model", "explain {photo} --model {tmp}/text.dfq", 2, "model: found"),
    (
        "explain beside nothing",
        "explain {photo} --float-model {tmp}/none.pth",
        2,
        "float-model: found .*none.pth",
    ),
    # watch
    ("watch nothing", "watch {tmp}/none.avi --out {tmp}/x.avi", 2, "none.avi is no file"),
    ("watch an empty file", "watch {tmp}/empty.jpg --out {tmp}/x.avi", 2, "an empty file"),
    ("watch text", "watch {tmp}/text.avi --out {tmp}/x.avi", 2, "no film that OpenCV can read"),
    ("watch no camera", "watch 77 --out {tmp}/x.avi", 2, "found no camera 77"),
    ("watch to GIF", "watch {tmp}/film.avi --out {tmp}/x.gif", 2, "out: found .*x.gif"),
    ("watch to nowhere", "watch {tmp}/film.avi --out {tmp}/no/x.avi", 2, "which is no folder"),
    ("watch onto itself", "watch {tmp}/film.avi --out {tmp}/film.avi", 2, "than the source"),
    ("watch unseen", "watch {tmp}/film.avi --no-window", 2, "out: found none"),
    # data
    ("generate what", "data generate --out {tmp}/d --dataset FFpp", 2, "found 'FFpp'"),
    ("generate into a file", "data generate --out {net} --dataset DFDC", 2, "which is no folder"),
    (
        "generate nobody",
        "data generate --out {tmp}/d --dataset DFDC --count 0",
        2,
        "count: found 0",
    ),
    ("generate a dot", "data generate --out {tmp}/d --dataset DFDC --size 1", 2, "size: found 1"),
    (
        "degrade how",
        "data generate --out {tmp}/d --dataset DFDC --degrade jpeg:9",
        2,
        "degrade: found 'jpeg:9'",
    ),
    ("check nothing", "data check --data {tmp}/none --dataset DFDC", 2, "which is no folder"),
    # convert, compress
    (
        "convert what",
        "convert --detector nrp --data {tmp} --out {tmp}/x.dfq",
        2,
        "nearest: 'npr'",
    ),
    (
        "convert without weights",
        "convert --detector meso4 --weights {tmp}/none.pth --data {tmp} --out {tmp}/x.dfq",
        2,
        "none.pth: found no file",
    ),
    (
        "convert with text",
        "convert --detector meso4 --weights {tmp}/text.dfq --data {tmp} --out {tmp}/x.dfq",
        2,
        "text.dfq",
    ),
    (
        "convert without pictures",
        "convert --detector meso4 --data {tmp}/nothing --out {tmp}/x.dfq",
        2,
        "found no picture or video in this folder",
    ),
    (
        "convert to nowhere",
        "convert --detector meso4 --data {tmp} --out {tmp}/no/x.dfq",
        2,
        "out: found .*whose folder",
    ),
    (
        "convert to ONNX",
        "convert --detector meso4 --data {tmp} --out {tmp}/x.onnx",
        2,
        "ends with .dfq",
    ),
    (
        "compress onto a folder",
        "compress --detector meso4 --data {tmp} --out {folder}",
        2,
        "out: found .*no file that can be written over",
    ),
    ("convert nothing", "convert --data {tmp} --out {tmp}/x.dfq", 2, "model: found neither"),
    (
        "compress what",
        "compress --detector nrp --data {tmp} --out {tmp}/x.dfq",
        2,
        "nearest: 'npr'",
    ),
    (
        "compress without pictures",
        "compress --detector meso4 --data {tmp}/nothing --out {tmp}/x.dfq",
        2,
        "found no picture or video in this folder",
    ),
    # demo, export
    ("demo without a face", "demo {tmp}/wall.png --out {tmp}/demo", 2, "wall.png: no face found"),
    ("export nothing", "export {tmp}/none.dfq --onnx {tmp}/x.onnx", 2, "none.dfq"),
    ("export text", "export {tmp}/text.dfq --onnx {tmp}/x.onnx", 2, "text.dfq"),
    (
        "export to nowhere",
        "export {tmp}/text.dfq --onnx {tmp}/x.onnx --weights int3",
        2,
        "int3|text.dfq",
    ),
    # inspect
    ("inspect nothing", "inspect {tmp}/none.dfq", 2, "none.dfq"),
    ("inspect text", "inspect {tmp}/text.dfq", 2, "model: found .*text.dfq"),
    # aot; needs Triton
    ("compile nothing", "aot {tmp}/none.dfq --arch sm_90 --out {tmp}/x", 2, "none.dfq"),
    ("compile text", "aot {tmp}/text.dfq --arch sm_90 --out {tmp}/x", 2, "model: found .*text.dfq"),
    ("compile for what", "aot {tmp}/text.dfq --arch sm_1 --out {tmp}/x", 2, "arch: found 'sm_1'"),
    ("compile over a folder", "aot {tmp}/text.dfq --arch sm_90 --out {tmp}", 2, "already there"),
    ("compile to a file's folder", "aot {net} --arch sm_90 --out {tmp}/text.jpg/x", 2, "text.jpg"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    (root / "nothing").mkdir()
    (root / "empty.jpg").touch()
    for suffix in ("jpg", "avi", "dfq"):
        (root / f"text.{suffix}").write_text("no such thing " * 40)
    wall = np.full((80, 80, 3), 90, np.uint8)
    (root / "wall.png").write_bytes(cv2.imencode(".png", wall)[1].tobytes())
    film(root / "film.avi", [wall] * 3)
    net = tmp_path_factory.mktemp("good") / "net.dfq"
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval(), torch.rand(2, 4)
    save(convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend="program"), net)
    folder = root / "folder.dfq"
    folder.mkdir()
    return {"tmp": root, "folder": folder, "photo": PHOTOS / "astronaut.jpg", "net": net}


@pytest.mark.parametrize(
    ("command", "code", "text"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS]
)
def test_bad_input_of_other_commands_is_named(places, command, code, text):
    if command.startswith("aot"):
        pytest.importorskip("triton")
    before = sorted(places["tmp"].rglob("*"))
    result = run(*(word.format(**places) for word in command.split()))
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == code, result.output
    assert len(lines) == 1, lines
    assert lines[0].startswith("defakeq: ")
    assert re.search(text, lines[0]), lines[0]
    assert sorted(places["tmp"].rglob("*")) == before  # nothing half-written stays


def test_there_are_thirty_kinds_of_bad_input():
    assert len({name for name, *_ in OTHERS}) == len(OTHERS) >= 30
