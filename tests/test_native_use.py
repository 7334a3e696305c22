"""Use from C++ and without Python: the installed CMake package, and `dq_run`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from program_builder import Builder

from defakeq.bench.cli import HEAD
from defakeq_kernels import dfq, runtime

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake is not installed")

CMAKE = """\
cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES CXX)
find_package(defakeq 0.1 REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE defakeq::defakeq)
"""

MAIN = """\
#include <cstdio>
#include <exception>
#include <vector>

#include "defakeq/defakeq.h"

// consumer FILE: runs the program on the floats of standard input, one image
int main(int, char** argv) {
  try {
    defakeq::Program program = defakeq::Program::load(argv[1], 2);
    const auto count = [](const defakeq::ProgramPort& port) {
      size_t n = 1;
      for (const int64_t size : port.shape) n *= static_cast<size_t>(size);
      return n;
    };
    std::vector<std::vector<float>> in, out;
    std::vector<const float*> inputs;
    std::vector<float*> outputs;
    for (const auto& port : program.inputs()) {
      in.emplace_back(count(port));
      if (std::fread(in.back().data(), 4, in.back().size(), stdin) != in.back().size()) return 2;
      inputs.push_back(in.back().data());
    }
    for (const auto& port : program.outputs()) {
      out.emplace_back(count(port));
      outputs.push_back(out.back().data());
    }
    program.run(inputs.data(), outputs.data(), 1);
    for (const auto& y : out) std::fwrite(y.data(), 4, y.size(), stdout);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s %s: %s\\n", defakeq::version(), defakeq::selected_isa(), error.what());
    return 1;
  }
  return 0;
}
"""


def network() -> bytes:
    """Two inputs, two outputs."""
    b = Builder(3)
    q = b.quant()
    image = b.input((8, 6, 3), q, "nchw")
    vector = b.input((16,))
    conv = b.layer("conv2d", (16, 3, 3, 3), q, q, "relu", padding=1, bits=4)
    hidden = b.node("conv2d", [image], (8, 6, 16), q, layer=conv)
    mean = b.node("mean_rows", [hidden], (16,))
    b.output(hidden, "nchw")
    b.output(b.node("binary", [mean, vector], (16,), None, fn="add"))
    return dfq.dumps(b.tensors, b.network)


def arrays(batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = ((batch, 3, 8, 6), (batch, 16))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], capture_output=True, check=False, **options)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """Where the build of this tree is installed."""
    tag = sys.implementation.cache_tag
    builds = sorted(ROOT.glob(f"build/*{tag}*/dq_run"), key=lambda path: path.stat().st_mtime)
    if not builds:
        pytest.skip("this tree has no build")
    folder = tmp_path_factory.mktemp("prefix")
    command = ("cmake", "--install", builds[-1].parent, "--prefix", folder)
    done = run(*command, "--component", "native")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "net.dfq"
    path.write_bytes(network())
    return path


def saved(folder: Path, batch: int) -> list[Path]:
    paths = []
    for i, array in enumerate(arrays(batch)):
        paths.append(folder / f"x{i}.npy")
        np.save(paths[-1], array)
    return paths


def test_a_cmake_project_uses_the_installed_package(prefix, model, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "main.cpp").write_text(MAIN)
    build = tmp_path / "build"
    found = run("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", text=True)
    assert found.returncode == 0, found.stderr
    built = run("cmake", "--build", build, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    inputs = arrays(1)
    expected = runtime.load(model, 1)(*inputs)
    data = b"".join(x.tobytes() for x in inputs)
    done = run(build / "consumer", model, input=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"".join(y.tobytes() for y in expected)
    model.write_bytes(network()[:-1])
    broken = run(build / "consumer", model, input=data, text=False)
    assert broken.returncode == 1
    assert b"data_offsets: found" in broken.stderr


def test_an_older_and_a_newer_version_are_told_apart(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.replace("0.1 REQUIRED", "7.0 REQUIRED"))
    done = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert done.returncode != 0
    assert b'requested version "7.0"' in done.stderr


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_dq_run_gives_the_same_bytes(prefix, model, tmp_path, batch, threads):
    paths = saved(tmp_path, batch)
    outputs = [tmp_path / "y0.npy", tmp_path / "y1.npy"]
    options = [word for path in outputs for word in ("--output", path)]
    done = run(prefix / "bin/dq_run", model, *paths, "--threads", threads, *options, text=True)
    assert done.returncode == 0, done.stderr
    expected = runtime.load(model, 1)(*arrays(batch))
    for path, y in zip(outputs, expected, strict=True):
        found = np.load(path)
        assert found.shape == y.shape
        assert found.tobytes() == y.tobytes()
    second = re.search(rf"^y1 \[{batch}, 16\]: (.*)$", done.stdout, re.MULTILINE)
    shown = np.array(second.group(1).replace("...", "").split(), np.float32)
    assert shown.tobytes() == expected[1].reshape(-1)[: shown.size].tobytes()


def test_dq_run_prints_a_table_of_the_nodes(prefix, model, tmp_path):
    options = ("--repeat", "3", "--bench", "--profile")
    done = run(prefix / "bin/dq_run", model, *saved(tmp_path, 2), *options, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["node", "op", "shape", "us", "share", "GMAC/s"]
    rows = [line.split() for line in lines[1:4]]
    assert [row[1] for row in rows] == ["conv2d", "mean_rows", "binary"]
    shares = re.findall(r"([\d.]+)%", "\n".join(lines[1:4]))
    assert abs(sum(map(float, shares)) - 100) < 0.5
    assert lines[4] == HEAD
    network, plan, engine, threads, *numbers = lines[5].split()
    assert (network, plan, engine, threads) == (model.stem, "file", "defakeq", "1")
    assert len(numbers) == 5
    assert all(float(number) >= 0 for number in numbers)
    assert re.search(r"^loaded in [\d.]+ ms: read [\d.]+, packed [\d.]+ on 1 threads; ", lines[6])
    plain = run(prefix / "bin/dq_run", model, *saved(tmp_path, 2), text=True).stdout.splitlines()
    assert plain[0] == lines[0]
    assert [line.split()[0] for line in plain[4:]] == ["y0", "y1"]
    timed = run(prefix / "bin/dq_run", model, *saved(tmp_path, 2), "--bench", text=True).stdout
    assert timed.startswith(HEAD)


def test_dq_run_refuses_by_name(prefix, model, tmp_path):
    image, vector = saved(tmp_path, 2)
    wrong = tmp_path / "wrong.npy"

    def message(*arguments: object) -> str:
        done = run(prefix / "bin/dq_run", *arguments, text=True)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("dq_run: ")
        return done.stderr

    assert "arguments: found 1 inputs; accepted is 2" in message(model, image)
    assert "cannot open" in message(tmp_path / "absent.dfq", image, vector)
    assert "accepted is a .npy file" in message(model, model, vector)
    assert "--threads: found '0'" in message(model, image, vector, "--threads", 0)
    assert "option: found --fast" in message(model, image, vector, "--fast")
    np.save(wrong, np.zeros((2, 3, 8, 6)))
    assert "found type '<f8'" in message(model, wrong, vector)
    np.save(wrong, np.zeros((2, 3, 8, 7), np.float32))
    assert "found shape [2, 3, 8, 7]; accepted is [batch, 3, 8, 6]" in message(model, wrong, vector)
    np.save(wrong, np.zeros((1, 16), np.float32))
    assert "one batch for all inputs" in message(model, image, wrong)
    absent = tmp_path / "absent" / "y.npy"
    assert "writable path" in message(model, image, vector, "--output", absent)
    too_many = ["--output", wrong] * 3
    assert "--output: found 3 of them" in message(model, image, vector, *too_many)
    model.write_bytes(model.read_bytes()[:-1])
    assert "data_offsets" in message(model, image, vector)
    help_text = run(prefix / "bin/dq_run", "--help", text=True)
    assert help_text.returncode == 0
    assert help_text.stdout.startswith("usage: dq_run model.dfq")
    assert run(prefix / "bin/dq_run").returncode == 2
