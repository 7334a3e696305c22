"""Converted detectors: what they keep, how close they stay, and what torch still runs."""

from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from defakeq import detectors, networks  # noqa: E402
from defakeq.conversion import convert, load, save  # noqa: E402
from defakeq.data import open_dataset  # noqa: E402
from defakeq.data.generate import Options, generate  # noqa: E402
from defakeq.detectors.f3net import FadHead  # noqa: E402
from defakeq.detectors.spsl import PhasePicture, phase_picture  # noqa: E402
from defakeq.detectors.wavelet_clip import WaveletClip  # noqa: E402
from defakeq.interface import Interface  # noqa: E402
from defakeq.lower import ProgramModule  # noqa: E402
from defakeq.plan import QuantPlan  # noqa: E402

QUICK = ("meso4", "npr", "deit_tiny")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Faces of the generator: real ones and all families of forgeries, at several strengths."""
    root = tmp_path_factory.mktemp("generated")
    generate(root, Options("folder", count=6, frames=1, size=160, splits=("test",)))
    found = open_dataset(root, "folder", "test")
    return [
        image for batch in found.batches(64, None, 0, prepare=np.array) for image in batch.images
    ]


def _spread(name):
    """A detector with weights that are spread as trained ones are."""
    if name != "wavelet_clip_small":
        return detectors.untrained(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WaveletClip(256, 4, 4).eval()
        networks.randomize(model, 224)
    return model


def _inputs(model, pictures, count):
    chosen = pictures[:: max(1, len(pictures) // count)][:count]
    return torch.stack([model.preprocess(image) for image in chosen])


def _check(name, backend, pictures, count, calibration):
    model = _spread(name)
    x = _inputs(model, pictures, count)
    batches = _inputs(model, pictures, calibration).split(4)
    converted = convert(model, x[:1], QuantPlan.uniform(model, 8), batches, backend=backend)
    with torch.no_grad():
        exact = torch.cat([model.score(one) for one in x.split(1)])
        found = converted.score(x)
        assert torch.equal(model.interface.probability(converted(x)), found)
    assert found.shape == (len(x),)
    assert (found - exact).abs().max() <= 0.01, (found - exact).abs().max()
    assert converted.input_size == model.input_size
    image = pictures[0]
    assert torch.equal(converted.preprocess(image), model.preprocess(image))
    if backend == "program":
        assert not converted.fallbacks
    return model, converted, x


@pytest.mark.parametrize("backend", ["modules", "program"])
@pytest.mark.parametrize("name", [*QUICK, "wavelet_clip_small"])
def test_converted_detectors_score_alike(name, backend, pictures, tmp_path):
    model, converted, x = _check(name, backend, pictures, 4, 16)
    same = [copy.deepcopy(converted)]
    path = tmp_path / "detector.dfq"
    save(converted, path)
    unnamed = backend == "modules" and name not in detectors.names()
    same.append(load(path, model if unnamed else None))
    for other in same:
        assert torch.equal(other.score(x[:2]), converted.score(x[:2]))
        assert torch.equal(other.preprocess(pictures[1]), model.preprocess(pictures[1]))
        assert other.input_size == model.input_size


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["modules", "program"])
@pytest.mark.parametrize("name", [n for n in detectors.names() if n not in QUICK])
def test_the_other_detectors_score_alike(name, backend, pictures):
    _check(name, backend, pictures, 4, 12)


def test_a_program_file_says_how_to_read_pictures(pictures, tmp_path):
    model = _spread("npr")
    x = _inputs(model, pictures, 2)
    save(convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend="program"), tmp_path / "a")
    from defakeq_kernels import dfq

    tensors, network = dfq.read(tmp_path / "a")
    assert Interface.of(network["interface"]) == model.interface
    network["interface"]["std"] = [0, 1, 1]
    dfq.write(tmp_path / "b", tensors, network)
    with pytest.raises(ValueError, match="std: found"):
        load(tmp_path / "b")


class _Own(nn.Module):
    """A user's detector of pictures of 16 x 16, with one logit."""

    input_size = (3, 16, 16)

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    def preprocess(self, image):
        picture = torch.from_numpy(image[:16, :16].copy()).permute(2, 0, 1).float()
        return picture / 255 * self.input_size[0]

    def score(self, batch):
        return torch.sigmoid(self(batch) / self.temperature)[:, 0]


@pytest.mark.parametrize("backend", ["modules", "program"])
def test_any_module_keeps_what_it_has(backend, pictures):
    torch.manual_seed(1)
    model = _Own().eval()
    x = torch.stack([model.preprocess(image) for image in pictures[:8]])
    converted = convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend=backend)
    for one in (converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert one.input_size == (3, 16, 16)
        assert torch.equal(one.preprocess(pictures[0]), x[0])
        with torch.no_grad():
            expected = torch.sigmoid(one(x) / 2)[:, 0]
            assert torch.equal(one.score(x), expected)
            assert not torch.equal(one.score(x), model.score(x))
            assert (one.score(x) - model.score(x)).abs().max() < 0.01


def test_a_plain_module_gets_nothing(pictures):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 1)).eval()
    x = torch.rand(4, 3, 8, 8)
    converted = convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend="program")
    assert isinstance(converted, ProgramModule)
    for name in ("preprocess", "score", "input_size"):
        assert not hasattr(converted, name)
    assert "interface" not in converted.file()[1]


def test_files_name_only_detectors(pictures, tmp_path):
    from defakeq_kernels import dfq

    model = _spread("meso4")
    x = _inputs(model, pictures, 2)
    path = tmp_path / "meso4.dfq"
    save(convert(model, x[:1], QuantPlan.uniform(model, 8), [x]), path)
    tensors, network = dfq.read(path)
    assert network["model"]["builder"] == {
        "function": "defakeq.detectors:build",
        "kwargs": {"name": "meso4"},
    }
    network["model"]["builder"]["kwargs"]["pretrained"] = "/some/file"
    dfq.write(path, tensors, network)
    with pytest.raises(ValueError, match=r"builder: found 'defakeq\.detectors:build'"):
        load(path)


def _run(*words):
    from defakeq.cli import app

    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_checkpoint_and_a_folder_come_to_a_file_and_a_score(tmp_path):
    data = tmp_path / "data"
    generate(data, Options("folder", count=2, frames=1, size=96, splits=("train", "test")))
    state = _spread("meso4").state_dict()
    weights = tmp_path / "meso4.pth"
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, weights)
    out = tmp_path / "meso4.dfq"
    options = ("--detector", "meso4", "--weights", weights, "--data", data, "--images", 4)
    result = _run("convert", *options, "--dataset", "folder", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: {out.stat().st_size} bytes" in result.stdout

    report = tmp_path / "metrics.json"
    result = _run(
        "evaluate", out, "--data", data, "--float-model", weights, "--builder", "meso4",
        "--json", report, "--repeats", 10, "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(report.read_text())
    assert "meso4.dfq" in json.dumps(document)
    assert "meso4.pth" in json.dumps(document)
    alone = _run(
        "evaluate", weights, "--builder", "meso4", "--data", data, "--quiet", "--repeats", 10
    )
    assert alone.exit_code == 0, alone.output


def test_convert_and_its_weights_name_what_is_wrong(tmp_path):
    data = tmp_path / "data"
    generate(data, Options("folder", count=2, frames=1, size=64, splits=("train",)))
    weights, out = tmp_path / "weights.pth", tmp_path / "a.dfq"
    torch.save({"conv1.weight": torch.zeros(1)}, weights)
    places = ("--data", data, "--out", out)
    for words, message in (
        (("--detector", "nrp"), "name: found 'nrp' (nearest: 'npr')"),
        (("--detector", "npr", "--weights", weights), "conv1.weight is [1], accepted is [64, 3"),
        (("--detector", "npr", "--weights", "none.pth"), "none.pth: found no file"),
        (("--detector", "npr", "--model", "a:b"), "detector, model: found both"),
        (("--model", "no_such_module:build"), "no_such_module:build"),
        (("--detector", "meso4", "--backend", "fast"), "backend: found 'fast'"),
    ):
        result = _run("convert", *words, *places)
        assert result.exit_code == 2, result.output
        assert message in result.stderr.replace("\n", ""), result.stderr
        assert not out.exists()


def test_the_detectors_are_listed():
    result = _run("detectors")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(detectors.names())
    assert re.fullmatch(r"lsda +256 x 256 +18\.73 M parameters", lines[7])


class _Branches(nn.Module):
    """Two branches of odd widths, side by side."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(3, 1, 1), nn.Conv2d(3, 6, 3, padding=1)])

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def test_a_file_has_one_pixel_of_a_concatenation():
    torch.manual_seed(2)
    model, x = _Branches().eval(), torch.rand(2, 3, 24, 24)
    converted = convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend="program")
    tensors, network = converted.file()
    (copy_node,) = (n for n in network["program"]["nodes"] if n["op"] == "copy")
    assert copy_node["repeats"] == 24 * 24
    assert tensors[copy_node["index"]].tolist() == [0, *range(576, 582)]
    assert tensors[copy_node["step"]].tolist() == [1, *[6] * 6]
    with torch.no_grad():
        assert (converted(x) - model(x)).abs().max() < 0.03


def test_a_check_of_a_detector_tells_its_file_and_differences():
    result = _run("detectors", "--check", "meso4", "--pictures", 3, "--json")
    assert result.exit_code == 0, result.output
    (found,) = map(json.loads, result.stdout.splitlines())
    assert (found["name"], found["parameters"], found["pictures"]) == ("meso4", 27898, 3)
    assert 27898 <= found["bytes"] < 60_000
    assert 0 < found["mean"] <= found["most"] < 0.05
    for words, message in (
        (("--check", "nrp"), "name: found 'nrp' (nearest: 'npr')"),
        (("--json",), "json: found without check"),
    ):
        result = _run("detectors", *words)
        assert result.exit_code == 2, result.output
        assert message in result.stderr


def test_frequencies_are_not_rounded_to_eight_bits(pictures):
    model = nn.Sequential(FadHead(64), nn.Conv2d(12, 4, 3, 2), nn.Flatten()).eval()
    x = torch.stack([Interface(64).preprocess(image) for image in pictures[:4]])
    converted = convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend="program")
    program = converted.file()[1]["program"]
    made = [(node["op"], program["values"][node["out"][0]]["dtype"]) for node in program["nodes"]]
    # All transforms keep their range; the sums and differences of the last ones, the bands'
    # pictures, are the convolution's input, of 8 bits.
    assert made.count(("linear", "float32")) == 12
    assert made.count(("binary", "int8")) == 4
    assert all("repeats" in node for node in program["nodes"] if node["op"] == "copy")
    assert program["inputs"][0]["layout"] == "plain"  # the first products read it as it lies
    with torch.no_grad():
        exact, found = model(x), converted(x)
    assert (found - exact).norm() <= 0.03 * exact.norm()


class _PhaseBranch(nn.Module):
    """The first layer of SPSL on pictures of 64 x 64."""

    def __init__(self):
        super().__init__()
        self.phases = PhasePicture(64)
        self.conv = nn.Conv2d(4, 8, 3, 2)
        with torch.no_grad():
            self.conv.weight[:, 3] *= 20

    def forward(self, x):
        return self.conv(torch.cat([x, self.phases(x)], 1))


def test_phases_need_no_fourier_transform_of_torch(pictures):
    x = torch.stack([Interface(64).preprocess(image) for image in pictures[:3]])
    model = PhasePicture(64).eval()
    exact = phase_picture(x)
    assert torch.equal(model(x), exact)
    torch.testing.assert_close(model.by_matrices(x), exact, atol=1e-5, rtol=0)
    program = convert(model, x[:1], QuantPlan({}), [x], backend="program")
    assert not program.fallbacks
    torch.testing.assert_close(program(x), exact, atol=1e-3 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("backend", ["modules", "program"])
def test_phases_are_not_lost_beside_the_picture(backend, pictures):
    assert detectors.build("spsl").float_inputs == {"backbone.conv1": (3,)}
    x = torch.stack([Interface(64).preprocess(image) for image in pictures[:6]])
    torch.manual_seed(0)
    model = _PhaseBranch().eval()
    error = []
    for model.float_inputs in ({}, {"conv": (3,)}):
        converted = convert(model, x[:1], QuantPlan.uniform(model, 8), [x], backend=backend)
        with torch.no_grad():
            error.append(float((converted(x) - model(x)).norm() / model(x).norm()))
    assert error[1] < 0.015 < error[0], error
