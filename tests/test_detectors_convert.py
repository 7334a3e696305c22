"""Converted detectors: what they keep, how close they stay, and what torch still runs."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from defakeq import detectors, networks  # noqa: E402
from defakeq.conversion import convert, load, save  # noqa: E402
from defakeq.data.degrade import degradations  # noqa: E402
