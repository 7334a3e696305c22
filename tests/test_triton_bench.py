"""bench/gpu.py where there is no GPU: the dry run sets everything up, the other says what lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

SCRIPT = Path(__file__).resolve().parent.parent / "bench/gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dry_run_makes_what_a_run_measures() -> None:
    done = run("--dry-run", "--only", "gemv,pruned")
    assert done.returncode == 0, done.stderr
    assert "dry run: everything was made" in done.stderr
    assert done.stdout.count("made and called") >= 8
    # peers that are not here are listed with the reason
    assert "gemlite" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_no_device_is_said() -> None:
    done = run("--only", "gemv")
    assert done.returncode == 2
    assert "found no CUDA device" in done.stderr
    refused = run("--only", "fft")
    assert "--only: found 'fft'" in refused.stderr
