"""The build: what the libraries export and need, how setup.py finds torch, the dispatcher."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import defakeq_kernels
from defakeq_kernels import _core

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(_core.__file__).parent
TIERS = ["scalar", "avx2", "avx512vnni"]

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
needs_readelf = pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")


def torch_ops_library() -> Path:
    paths = sorted(PACKAGE.glob("_torch_ops*.so"))
    if not paths:
        pytest.skip("the torch ops are not built")
    return paths[0]


def symbols(path: Path, kind: str) -> list[str]:
    command = ["nm", "-D", "-C", f"--{kind}-only", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split(maxsplit=1 if kind == "undefined" else 2)[-1] for line in text.splitlines()]


@needs_nm
def test_torch_ops_use_the_stable_abi_only():
    names = symbols(torch_ops_library(), "undefined")
    foreign = [n for n in names if re.search(r"\b(c10|at|torch|caffe2)::", n)]
    assert foreign == []
    shims = [n for n in names if n.startswith(("aoti_torch_", "torch_"))]
    assert "torch_library_impl" in shims
    known = re.compile(
        r"^(aoti_torch_|torch_|defakeq::|(vtable|typeinfo)( name)? for (defakeq|__cxxabiv1|std)|"
        r"std::|operator (new|delete)|__|_ITM_|_Unwind|.*@(GLIBC|GLIBCXX|CXXABI|GCC)_)"
    )
    assert [n for n in names if not known.match(n)] == []


@needs_nm
def test_library_exports_only_its_api():
    names = symbols(PACKAGE / "libdefakeq.so", "defined")
    ours = [n for n in names if "defakeq::" in n]
    assert "defakeq::version()" in ours
    inside = re.compile(r"\b(simd|scalar|avx2|avx512vnni)::|kernel_table|KernelTable")
    assert [n for n in ours if inside.search(n)] == []


@needs_readelf
def test_libraries_find_each_other_and_name_no_build_directory():
    for path in sorted(PACKAGE.glob("*.so")):
        text = subprocess.run(
            ["readelf", "-d", str(path)], check=True, capture_output=True, text=True
        ).stdout
        runpaths = re.findall(r"R(?:UN)?PATH.*\[(.*)\]", text)
        assert runpaths == ["$ORIGIN"], path.name
        assert "libgomp" not in text, path.name
        if path.name.startswith("_"):
            assert "libdefakeq.so" in text, path.name
        if not path.name.startswith("_torch"):
            assert "libtorch" not in text, path.name


def test_versions_agree():
    header = (ROOT / "csrc/include/defakeq/version.h").read_text()
    assert f'"{_core.version()}"' in header
    assert defakeq_kernels.__version__ == _core.version()
    numbers = re.findall(r"DEFAKEQ_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    assert ".".join(numbers) == _core.version()


def test_cpu_info_is_consistent():
    info = defakeq_kernels.cpu_info()
    isa = info["isa"]
    assert set(isa) == {"built", "supported", "allowed"}
    usable = [t for t in TIERS if all(t in isa[k] for k in isa)]
    assert info["selected"] == usable[-1]
    assert "scalar" in isa["built"]
    assert info["threads"] == len(os.sched_getaffinity(0))
    assert info["cpu"]


def test_supported_tiers_match_the_kernels_view():
    path = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    if flags is None:
        pytest.skip("no processor flags to compare with")
    have = set(flags.group(1).split())
    vnni = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512vbmi"}
    expected = ["scalar"]
    if {"avx2", "fma", "f16c"} <= have:
        expected.append("avx2")
        if vnni <= have:
            expected.append("avx512vnni")
    assert defakeq_kernels.cpu_info()["isa"]["supported"] == expected


def run_with_isa(value: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import defakeq_kernels as d; i = d.cpu_info(); print(i['selected'], *i['isa']['allowed'])"
    )
    environment = {**os.environ, "DEFAKEQ_ISA": value}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("tier", TIERS)
def test_environment_limits_the_tier(tier):
    isa = defakeq_kernels.cpu_info()["isa"]
    result = run_with_isa(tier)
    assert result.returncode == 0, result.stderr
    selected, *allowed = result.stdout.split()
    assert allowed == TIERS[: TIERS.index(tier) + 1]
    usable = [t for t in allowed if t in isa["built"] and t in isa["supported"]]
    assert selected == usable[-1]
    assert (f"DEFAKEQ_ISA={tier} is not" in result.stderr) == (selected != tier)


def test_environment_with_an_unknown_tier_is_refused():
    result = run_with_isa("avx9")
    assert result.returncode != 0
    assert "DEFAKEQ_ISA: found 'avx9', accepted: scalar, avx2, avx512vnni" in result.stderr


def test_set_isa():
    before = _core.cpu_info()["selected"]
    try:
        _core.set_isa("scalar")
        assert _core.cpu_info()["selected"] == "scalar"
        with pytest.raises(ValueError, match="isa: found 'neon', accepted here: scalar"):
            _core.set_isa("neon")
        assert _core.cpu_info()["selected"] == "scalar"
    finally:
        _core.set_isa(None)
    assert _core.cpu_info()["selected"] == before


def test_thread_count():
    before = defakeq_kernels.get_num_threads()
    try:
        defakeq_kernels.set_num_threads(3)
        assert defakeq_kernels.get_num_threads() == 3
        with pytest.raises(ValueError, match="threads: found 0, accepted: 1 to 1024"):
            defakeq_kernels.set_num_threads(0)
        assert defakeq_kernels.get_num_threads() == 3
    finally:
        defakeq_kernels.set_num_threads(before)


def test_pack_layer_names_the_wrong_field():
    import numpy as np

    from defakeq_kernels.quantize import quantize_weight

    weight = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
    good = quantize_weight(weight, kind="linear", bits=4, bias=np.zeros(8, np.float32)).spec()
    assert _core.pack_layer(good).ctypes.data % 64 == 0
    segment = good["segments"][0]
    cases = [
        ({"kind": "rnn"}, "kind: found 'rnn'"),
        ({"shape": (8,)}, "shape: found"),
        ({"shape": (8, 0)}, "shape: found"),
        ({"groups": 0}, "groups: found 0"),
        ({"group_size": -4}, "group_size: found -4"),
        ({"bias": np.zeros(7, np.float32)}, r"bias: found float32\[7\], accepted: float32\[8\]"),
        ({"bias": np.zeros(8)}, r"bias: found float64\[8\]"),
        ({"activation": "tanh"}, "activation: found 'tanh'"),
        ({"out": {"dtype": "int4", "scale": 1.0, "zero_point": 0, "bits": 8}}, "out.dtype"),
        ({"act": {"mode": "static", "scale": "x", "zero_point": 0, "bits": 8}}, "act.scale"),
        ({"act": 3}, "act: found int, accepted: a dict"),
        ({"segments": [{**segment, "bits": 9}]}, r"segments\[0\].bits: found 9"),
        ({"segments": [{**segment, "codes": segment["codes"][:, 1:]}]}, r"segments\[0\].codes"),
        ({"segments": [{**segment, "scale": segment["scale"][1:]}]}, r"segments\[0\].scale"),
        ({"segments": [{**segment, "zero_point": [1]}]}, r"segments\[0\].zero_point: found list"),
        ({"segments": 3}, "segments: found int"),
        ({"stride": (1, 2, 3)}, "stride: found"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            _core.pack_layer({**good, **change})
    for field in good:
        if field in {"bits", "in_index", "half_in_index", "half_in_weight", "bias"}:
            continue
        missing = {k: v for k, v in good.items() if k != field}
        with pytest.raises(ValueError, match=rf"^{field}: found nothing"):
            _core.pack_layer(missing)


def load_setup(monkeypatch: pytest.MonkeyPatch):
    import setuptools

    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("project_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(folder: Path, version: str) -> Path:
    package = folder / "torch"
    headers = package / "include/torch/csrc/stable"
    headers.mkdir(parents=True)
    (headers / "library.h").touch()
    (package / "version.py").write_text(f"__version__ = '{version}'\n")
    return package


def test_setup_finds_the_torch_of_the_target_environment(monkeypatch, tmp_path, capsys):
    pytest.importorskip("setuptools")
    setup = load_setup(monkeypatch)
    monkeypatch.delenv("DEFAKEQ_TORCH", raising=False)
    old, new = tmp_path / "old", tmp_path / "new"
    fake_torch(old, "2.9.1")
    package = fake_torch(new, "2.10.0+cpu")
    monkeypatch.setattr(setup, "site_directories", lambda: [tmp_path / "none", old, new])
    assert setup.find_torch() == package
    assert "torch 2.10.0+cpu" in capsys.readouterr().out
    monkeypatch.setattr(setup, "site_directories", lambda: [old])
    assert setup.find_torch() is None
    said = capsys.readouterr().out
    assert "found only torch 2.9.1" in said
    assert "torch-free" in said
    monkeypatch.setenv("DEFAKEQ_TORCH", "off")
    assert setup.find_torch() is None
    monkeypatch.setenv("DEFAKEQ_TORCH", str(package))
    assert setup.find_torch() == package
    monkeypatch.setenv("DEFAKEQ_TORCH", str(old / "torch"))
    with pytest.raises(RuntimeError, match="DEFAKEQ_TORCH: found"):
        setup.find_torch()


def test_torch_free_package_imports_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import defakeq_kernels, defakeq_kernels.packed, defakeq_kernels.quantize\n"
        "try:\n    import defakeq_kernels.ops\n"
        "except ImportError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "pip install" in result.stdout


def test_missing_torch_ops_name_the_build_command(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    from defakeq_kernels import ops

    monkeypatch.setattr(defakeq_kernels, "__path__", [str(tmp_path)])
    with pytest.raises(ImportError, match=r"_torch_ops.so\) are not built.*pip install"):
        ops._library()


def test_layers():
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/check_layers.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
