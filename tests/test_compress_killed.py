"""Killed compressions and full disks: what is finished stays, and the same command continues."""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compress_models import Residual, images
from compress_models import contents as _bytes
from compress_models import quickly as _run

from defakeq.compress import workdir


@functools.cache
def _undisturbed():
    return _bytes(_run(Residual(48), images()).model)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("stage", ["statistics", "alignment", "files"])
def test_killed_run_continues(stage, tmp_path, monkeypatch):
    saved: list[str] = []
    original = workdir.WorkDir.save

    def save(self, name, value):
        if name == stage:
            raise _Killed
        original(self, name, value)
        saved.append(name)

    def report_of(*_):
        raise _Killed

    monkeypatch.setattr(workdir.WorkDir, "save", save)
    with monkeypatch.context() as patch:
        if stage == "files":
            patch.setattr("defakeq.compress.report.made", report_of)
        with pytest.raises(_Killed):
            _run(Residual(48), images(), work=tmp_path)
    assert len(list(tmp_path.glob("*.stage"))) == len(saved)
    first = list(saved)
    saved.clear()
    stage = ""
    found = _run(Residual(48), images(), work=tmp_path)
    assert not set(first) & set(saved)  # nothing was made twice
    assert _bytes(found.model) == _undisturbed()


_DEATH = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from compress_models import QUICK, Residual, images
import defakeq

real = torch.save

def save(value, file):
    if os.path.exists(os.path.join(sys.argv[1], "block000.stage")):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(value, file)

torch.save = save
defakeq.compress(
    Residual(48), images(), size=0.15, preset=QUICK, progress=False, work=sys.argv[1]
)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_process_that_dies_while_writing_loses_nothing(tmp_path):
    died = _alone(_DEATH, tmp_path)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    assert len(list(tmp_path.glob(".*.part"))) == 1
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.stage")}
    assert set(times) == {"statistics.stage", "allocation.stage", "block000.stage"}
    found = _run(Residual(48), images(), work=tmp_path)
    assert _bytes(found.model) == _undisturbed()
    assert all((tmp_path / name).stat().st_mtime_ns == then for name, then in times.items())
    assert not list(tmp_path.glob(".*.part"))


def _alone(script, *arguments):
    """Runs a script in a process of its own, with this folder's modules."""
    paths = [str(Path(__file__).parent), *sys.path]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_other_arguments_start_anew(tmp_path):
    model, x = Residual(8), torch.rand(2, 3)
    key = workdir.fingerprint(model, [x, None], [1])
    first = workdir.WorkDir(tmp_path, key)
    first.save("statistics", {"a": x})
    assert torch.equal(workdir.WorkDir(tmp_path, key).load("statistics")["a"], x)
    others = [
        workdir.fingerprint(Residual(8, seed=1), [x, None], [1]),
        workdir.fingerprint(model, [x + 1, None], [1]),
        workdir.fingerprint(model, [x, x], [1]),
        workdir.fingerprint(model, [x, None], [2]),
    ]
    assert len({key, *others}) == 5
    assert workdir.WorkDir(tmp_path, others[0]).load("statistics") is None


def test_full_disk_is_named_and_keeps_what_is_finished(tmp_path, monkeypatch):
    real = torch.save
    count = 0

    def save(value, file):
        nonlocal count
        count += 1
        if count == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        _run(Residual(48), images(), work=tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["allocation.stage", "key.json", "statistics.stage"]
