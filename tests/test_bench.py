"""The benchmarks run, on tiny sizes, and report what they say they report. No time is asserted."""

from __future__ import annotations

import json
import os
import types

import numpy as np
import pytest
from bench_fields import MACHINE, ROW
from typer.testing import CliRunner

from defakeq.bench import peers as peers_module
from defakeq.bench import timing
from defakeq.bench.cli import app
from defakeq.bench.layers import copies_of, layer_input, layer_spec, native_contender
from defakeq.bench.ops import best_peer, measure, select
from defakeq.bench.shapes import VARIANTS, Work, load_shapes, parse_work, shape_files
from defakeq.bench.timing import Contender, interleave, pinned
from defakeq_kernels import _core

TINY = [
    "gemm 5x24x40",
    "gemm 5x24x40 half-out",
    "gemm 5x24x40 half-in-out",
    "gemm 5x24x40 half-precision-5",
    "gemm 5x24x40 half-precision-in-2",
    "conv 3x3 16-24@6x7/2",
    "conv 3x3 16@6x7 half-out",
    "conv 3x3 16@6x7 half-in-out",
    "conv 3x3 16@6x7 half-precision-5",
    "conv 3x3 16@6x7 half-precision-in-2",
    "conv 1x1 20@4x4",
    "conv 3x3 3-8@9x9/2p0",
    "dwconv 3x3 24@5x5",
    "dwconv 5x5 24@5x5 half-out",
    "gemv 1x24x256",
]


@pytest.fixture
def shapes_file(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text("# tiny\n" + "\n".join(TINY) + "\nsmall op 8\n")
    return path


def test_names_are_read_back():
    for name in load_shapes("table"):
        assert parse_work(name.name) == name
    work = parse_work("conv 3x3 64-128@56x48/2p0 half-in-out * 3")
    assert (work.inputs, work.outputs, work.size, work.stride) == (64, 128, (56, 48), 2)
    assert (work.out_size, work.count, work.variant) == ((27, 23), 3, "half-in-out")
    assert work.macs == 27 * 23 * 64 * 32 * 9


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gemm 1x2",
        "gemv 2x8x8",
        "gemm 0x8x8",
        "gemm 4x8x8 half",
        "conv 9x9 4@3x3p0",
        "conv 9x9 4@3x3/1p0",
        "dwconv 3x3 8-16@4x4",
        "dwconv 3x3 8@4x4 half-in-out",
        "small op 8 half-out",
        "gemm 4x8x8 * 0",
        "gemm 4x8x8 * many",
    ],
)
def test_wrong_names_are_refused(name):
    with pytest.raises(ValueError, match="work: found"):
        parse_work(name)


def test_a_wrong_line_is_named(tmp_path):
    path = tmp_path / "shapes.txt"
    path.write_text("gemm 4x8x8\n\nnothing\n")
    with pytest.raises(ValueError, match=r"line 3: work: found 'nothing'"):
        load_shapes(str(path))
    with pytest.raises(ValueError, match="shapes: found 'absent'"):
        load_shapes("absent")


def test_table_has_the_agreed_names():
    names = [w.name for w in load_shapes("table")]
    for base in (
        "gemm 196x768x768",
        "gemm 196x3072x768",
        "gemm 49x1024x1024",
        "gemm 1024x728x728",
        "gemm 4096x128x128",
        "conv 3x3 64@64x64",
        "conv 3x3 128@32x32",
        "conv 3x3 256@16x16",
        "conv 1x1 728@16x16",
    ):
        assert [f"{base} {v}".strip() in names for v in VARIANTS] == [True] * len(VARIANTS)
    assert {"dwconv 3x3 728@16x16", "gemv 1x1024x4096", "small op 8"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("resnet34", 4.785),
        ("xception", 5.951),
        ("efficientnet_b4", 1.961),
        ("mobilenet_v3_large", 0.215),
        ("vit_base", 16.848),
        ("swin_base", 15.125),
        ("meso4", 0.060),
    ],
)
def test_networks_add_up_to_their_published_cost(name, gmacs):
    assert name in shape_files()
    total = sum(w.macs * w.count for w in load_shapes(name))
    assert total == pytest.approx(gmacs * 1e9, abs=6e5)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("bits", [8, 3, 1])
def test_layers_do_the_work_that_is_counted(name, bits):
    work = parse_work(name)
    rng = np.random.default_rng(0)
    blob = _core.pack_layer(layer_spec(work, bits, rng))
    info = _core.layer_info(blob)
    assert info["macs"] * work.positions == work.macs
    x, half_input = layer_input(work, rng)
    call = _core.conv2d if work.is_conv else _core.linear
    out = call(blob, x, half_input=half_input)
    assert out.dtype == np.int8
    assert out.size == work.positions * work.outputs
    pruned = np.setdiff1d(np.arange(work.outputs), work.keep_out)
    assert np.all(out[..., pruned] == (-128 if work.is_conv else 3))
    assert len(np.unique(out[..., work.keep_out])) > 2


def test_time_layer_takes_copies_and_refuses_others():
    rng = np.random.default_rng(0)
    work = parse_work("gemm 5x24x40")
    blob = _core.pack_layer(layer_spec(work, 8, rng))
    x, _ = layer_input(work, rng)
    for flush, processor_time in ((False, False), (True, False), (False, True)):
        times = _core.time_layer([blob, blob], x, 3, 2, flush=flush, processor_time=processor_time)
        assert len(times) == 3
        assert min(times) >= 0
        assert processor_time or min(times) > 0
    with pytest.raises(ValueError, match="x: accepted"):
        _core.time_layer([blob], x[:, 1:], 1, 1)
    with pytest.raises(ValueError, match="x: found float64"):
        _core.time_layer([blob], x.astype(np.float64), 1, 1)
    with pytest.raises(ValueError, match="blobs: accepted"):
        _core.time_layer([], x, 1, 1)
    other = _core.pack_layer(layer_spec(parse_work("gemm 5x32x40"), 8, rng))
    with pytest.raises(ValueError, match="blobs: accepted"):
        _core.time_layer([blob, other], x, 1, 1)
    with pytest.raises(ValueError, match="repeats: accepted"):
        _core.time_layer([blob], x, 0, 1)
    mixed = parse_work("gemm 5x24x40 half-precision-in-2")
    blob = _core.pack_layer(layer_spec(mixed, 8, rng))
    x, half_input = layer_input(mixed, rng)
    assert len(_core.time_layer([blob], x, 2, 1, half_input=half_input)) == 2
    with pytest.raises(ValueError, match="half_input: accepted"):
        _core.time_layer([blob], x, 1, 1, half_input=half_input[:2])


def test_probe():
    for isa in (None, *_core.cpu_info()["isa"]["built"]):
        if isa is not None and isa not in _core.cpu_info()["isa"]["supported"]:
            continue
        peak = _core.probe_peak(isa)
        assert set(peak) == {"int8_gmacs", "fp32_gmacs", "l2_gbs", "dram_gbs"}
        assert all(np.isfinite(v) and v > 0 for v in peak.values())
        assert _core.int8_peak_gmacs(isa) > 0
    with pytest.raises(ValueError, match="isa: found 'mmx'"):
        _core.probe_peak("mmx")


def test_copies_stay_within_reason():
    for name in shape_files():
        for work in load_shapes(name):
            for bits in (2, 8, 32):
                assert 2 <= copies_of(work, bits) <= 32


def check_rows(rows):
    for row in rows:
        assert {k: type(row[k]) for k in ("work", "bits", "engine", "us")} == {
            k: ROW[k] for k in ("work", "bits", "engine", "us")
        }
        assert set(ROW) <= set(row)
        for key, kind in ROW.items():
            small = row["work"].startswith("small") and key in ("gmacs", "of_peak", "gbs")
            assert row[key] is None if small else isinstance(row[key], kind), key
        assert row["us"] > 0


def test_measure_reports_every_work():
    works = [parse_work(name) for name in TINY]
    groups = []
    result = measure(works, bits=(8, 3), rounds=2, command="test", on_rows=groups.append)
    assert [r for rows in groups for r in rows] == result["rows"]
    for key, kind in MACHINE.items():
        assert isinstance(result["machine"][key], kind), key
    check_rows(result["rows"])
    found = [(r["work"], r["bits"]) for r in result["rows"]]
    assert sorted(found) == sorted((name, bits) for name in TINY for bits in (8, 3))
    assert {r["engine"] for r in result["rows"]} == {"defakeq"}
    json.dumps(result)


def test_measure_refuses_wrong_arguments():
    works = [parse_work("gemm 5x24x40")]
    for arguments, name in (
        ({"bits": (9,)}, "bits"),
        ({"bits": ()}, "bits"),
        ({"rounds": 0}, "rounds"),
        ({"cold": True, "peers": True}, "cold"),
        ({"threads": 4096}, "threads"),
    ):
        with pytest.raises(ValueError, match=f"{name}: found"):
            measure(works, **arguments)
    with pytest.raises(ValueError, match="work: found nothing"):
        select(works, ["nothing"])


def test_peers_do_the_same_work():
    works = [parse_work(n) for n in ("gemm 5x32x128", "conv 3x3 16@6x6", "dwconv 3x3 16@6x6")]
    result = measure(works, bits=(8,), rounds=1, peers=True)
    check_rows(result["rows"])
    installed = [
        name
        for name, module in (("torch", "torch"), ("ort", "onnxruntime"), ("openvino", "openvino"))
        if not any(note.startswith(f"{module}: not compared") for note in result["notes"])
    ]
    for work in works:
        engines = {r["engine"].split()[0] for r in result["rows"] if r["work"] == work.name}
        assert engines == {"defakeq", *installed}
        if installed:
            peer = best_peer(result["rows"], work.name)
            assert peer["us"] == min(
                r["us"]
                for r in result["rows"]
                if r["work"] == work.name and r["engine"] != "defakeq"
            )
    refused = [n for n in result["notes"] if ": refused:" in n]
    assert refused == []


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setattr(
        peers_module,
        "importlib",
        types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None)),
    )
    result = measure([parse_work("gemm 5x24x40")], bits=(4,), rounds=1, peers=True)
    assert {r["engine"] for r in result["rows"]} == {"defakeq"}
    assert len(result["notes"]) == 3
    for module, note in zip(("torch", "onnxruntime", "openvino"), result["notes"], strict=True):
        assert note.startswith(f"{module}: not compared")
        assert "pip install" in note


def test_a_refusing_peer_is_named():
    peers = peers_module.Peers(1)

    def forms(work: Work):
        yield "broken", 8, lambda copies: 1 / 0

    peers._engines = [forms]
    assert peers.contenders(parse_work("gemm 5x24x40")) == []
    assert any("broken: refused: ZeroDivisionError" in note for note in peers.notes)


def test_rounds_interleave_everything():
    calls = []

    def contender(name):
        return Contender(name, 8, "defakeq", lambda processor_time: calls.append(name) or 1.0)

    contenders = [contender(n) for n in "abcd"]
    probes = interleave(contenders, 3, lambda: 2.0)
    assert probes == [2.0] * 3
    assert all(c.seconds == [1.0] * 3 for c in contenders)
    # One warm-up and three rounds; a preempted sample is taken again at once.
    distinct = [n for i, n in enumerate(calls) if i == 0 or calls[i - 1] != n]
    assert len(distinct) >= 13
    assert {n: calls.count(n) >= 4 for n in "abcd"} == dict.fromkeys("abcd", True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert cpus is not None
        assert os.sched_getaffinity(0) == set(cpus)
        assert len(cpus) == 1
    assert os.sched_getaffinity(0) == before


def test_a_sample_that_is_always_preempted_is_taken_in_processor_time(monkeypatch):
    switches = iter(range(1000))
    monkeypatch.setattr(timing, "_preemptions", lambda: next(switches))

    def run(processor_time):
        return 1.0 if processor_time else 2.0

    for threads, expected in ((1, 1.0), (2, 2.0)):
        contender = Contender("a", 8, "defakeq", run)
        interleave([contender], 2, lambda: 2.0, threads)
        assert contender.seconds == [expected] * 2
        assert contender.disturbed == 2
    monkeypatch.setattr(timing, "_preemptions", lambda: 0)
    contender = Contender("a", 8, "defakeq", run)
    interleave([contender], 2, lambda: 2.0, 1)
    assert contender.seconds == [2.0] * 2
    assert contender.disturbed == 0


def test_cold_calls_are_measured():
    contender = native_contender(parse_work("gemm 5x24x40"), 4, 1, cold=True)
    assert contender.run(False) > 0


def test_command_line(shapes_file, tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    target = tmp_path / "results" / "ops.json"
    arguments = ["ops", "--shapes", str(shapes_file), "--rounds", "1", "--bits", "4"]
    done = CliRunner().invoke(
        app, [*arguments, "--work", "gemm", "--work", "small", "--json", str(target)]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    check_rows(result["rows"])
    assert {r["work"] for r in result["rows"] if r["engine"] == "defakeq"} >= set(TINY[:5])
    assert all(name in done.output for name in TINY[:5])
    assert result["machine"]["cpu"] in done.output

    listed = CliRunner().invoke(app, [*arguments, "--list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in (*TINY, *shape_files()))
    for wrong in (["--bits", "x"], ["--bits", "0"], ["--work", "absent"], ["--rounds", "0"]):
        failed = CliRunner().invoke(app, [*arguments, *wrong])
        assert failed.exit_code == 2
        assert f"{wrong[0][2:]}: found" in failed.output
