from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """One thread on one processor, stated so that results can be compared."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from defakeq.bench.timing import pinned

    with pinned(1):
        yield
