"""`defakeq aot`: what is written, and the C++ loader on a driver that only takes notes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

from program_builder import Builder  # noqa: E402

from defakeq_kernels import dfq  # noqa: E402
from defakeq_kernels.quantize import ActQuant  # noqa: E402
from defakeq_kernels.triton import aot, layout  # noqa: E402

STUB = Path(__file__).parent / "triton/stub"
HEADERS = Path(triton.__file__).parent / "backends/nvidia/include"
Q = ActQuant.static(-3, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    b = Builder(7)
    x = b.input((9, 8, 12), Q, "nchw")
    first = b.layer("conv2d", (24, 12, 3, 3), Q, Q, padding=1, bits=4, keep_out=range(0, 24, 2))
    y = b.node("conv2d", [x], (9, 8, 24), Q, layer=first)
    second = b.layer("conv2d", (24, 24, 1, 1), Q, None, "relu", bits=4)
    b.output(b.node("conv2d", [y, y], (9, 8, 24), None, layer=second), "nchw")
    path: Path = tmp_path_factory.mktemp("model") / "model.dfq"
    dfq.write(path, b.tensors, b.network)
    return path


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: Any) -> aot.Built:
    return aot.build(model, tmp_path_factory.mktemp("aot") / "out", "sm_87")


def test_the_folder_is_complete(built: aot.Built) -> None:
    lines = (built.folder / "manifest.txt").read_text().splitlines()
    assert lines[:2] == ["defakeq-aot 1", "arch 87"]
    assert lines[-1] == "end"
    assert [line for line in lines if line.startswith("fill")] == [f"fill {Q.zero_point & 255}"]
    launches = [line.split() for line in lines if line.startswith("launch")]
    # 12 channels are laid out, 24 are read in place
    assert [w[2] for w in launches] == ["prepare_kernel", "product_kernel", "product_kernel"]
    assert sum(int(w[-1]) for w in launches) == sum(line.startswith("arg ") for line in lines)
    for words in launches:
        assert (built.folder / words[1]).read_bytes()[:4] == b"\x7fELF"
    # runtime layouts are found again in the constants
    data = (built.folder / "constants.bin").read_bytes()
    assert data.count(layout.MAGIC) == 2
    assert {f.name for f in built.folder.iterdir()} >= {"defakeq_aot.h", "defakeq_aot.cpp"}
    assert (built.layers, built.size) == (
        2, sum(f.stat().st_size for f in built.folder.iterdir())
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_loader_compiles_and_launches_what_the_manifest_says(
    built: aot.Built, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built.folder, folder)
    program = tmp_path / "run"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    sources = [folder / "defakeq_aot.cpp", STUB / "main.cpp"]
    subprocess.run(
        ["c++", *flags, "-isystem", HEADERS, *sources, STUB / "cuda.cpp", "-o", program], check=True
    )

    def run() -> tuple[int, list[str]]:
        done = subprocess.run([program, folder], capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines()

    code, lines = run()
    manifest = (folder / "manifest.txt").read_text().splitlines()
    wanted = [line.split()[2:-1] for line in manifest if line.startswith("launch")]
    found = [line.split() for line in lines if line.startswith("launch")]
    assert [words[1:7] for words in found] == wanted
    # the first argument of the first kernel is x; the products read what was laid out before
    assert int(found[0][7], 16) == 0x1000
    scratch = {int(line.split()[1]) for line in lines if line.startswith("alloc")}
    assert int(found[1][7], 16) in scratch
    assert any(line.startswith("copy ") for line in lines)
    assert f"fill {0x2000} {Q.zero_point & 255} {9 * 8 * 24}" in lines
    # the last call gave no memory, and everything was released
    assert code == 3
    assert lines[-1].endswith("x: found none, accepted is memory")
    assert "unloaded" in lines

    for old, new, message in (
        ("defakeq-aot 1", "defakeq-aot 2", "line 1: found 'defakeq-aot 2'"),
        ("\nend\n", "\n", "manifest.txt ends early"),
        ("arg x 0", "arg y 0", "found 'arg y 0'"),
        ("arg null", "launch", "found 'launch'"),
    ):
        text = (built.folder / "manifest.txt").read_text()
        assert old in text
        (folder / "manifest.txt").write_text(text.replace(old, new, 1))
        code, lines = run()
        assert code == 3
        assert message in lines[-1]


def test_bad_requests_are_named(model: Path, built: aot.Built, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arch: found 'sm_70'; accepted is one of sm_87"):
        aot.build(model, tmp_path / "a", "sm_70")
    with pytest.raises(ValueError, match="batch: found 0"):
        aot.build(model, tmp_path / "a", "sm_87", 0)
    with pytest.raises(FileExistsError, match="accepted is a new folder"):
        aot.build(model, built.folder, "sm_87")
    b = Builder(1)
    x = b.input((6, 16))
    name = b.layer("linear", (8, 16), ActQuant.dynamic(), None, bits=4)
    b.output(b.node("linear", [x], (6, 8), None, layer=name))
    dfq.write(tmp_path / "dynamic.dfq", b.tensors, b.network)
    with pytest.raises(ValueError, match="found dynamic_tensor activations; accepted is static"):
        aot.build(tmp_path / "dynamic.dfq", tmp_path / "a", "sm_87")
    assert list(tmp_path.iterdir()) == [tmp_path / "dynamic.dfq"]
